"""The HTTP side: server and pages."""
