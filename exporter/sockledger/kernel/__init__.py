"""All that talks to bpf(2) or needs a capability."""
