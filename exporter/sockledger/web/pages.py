"""The landing page that a browser shows at /."""

from html import escape
from string import Template

_LANDING = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>sockledger</title>
<style>
:root {
  --page: #f6f6f3; --card: #fff; --line: #e2e2dc; --text: #1c1e21; --quiet: #63676d; --accent: #0b6e5d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121415; --card: #1a1d1f; --line: #2d3235; --text: #e9ebec; --quiet: #9aa1a7; --accent: #57cdb5;
  }
}
* { box-sizing: border-box; margin: 0; }
body {
  min-height: 100vh; display: grid; place-items: center; padding: 2rem 1.25rem;
  background: var(--page); color: var(--text); font: 1rem/1.55 system-ui, sans-serif;
}
main { width: 100%; max-width: 34rem; }
header { display: flex; align-items: baseline; justify-content: space-between; gap: 1rem; }
h1 { font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -.025em; }
h1::before {
  content: ""; display: inline-block; width: .42em; height: .72em; margin-right: .4em;
  background: linear-gradient(var(--accent) 0 40%, transparent 40% 60%, var(--accent) 60%);
}
.version { color: var(--quiet); font: .875rem ui-monospace, monospace; overflow-wrap: anywhere; }
header + p { margin: .6rem 0 1.75rem; color: var(--quiet); }
nav { background: var(--card); border: 1px solid var(--line); border-radius: .625rem; overflow: hidden; }
nav a {
  display: grid; grid-template-columns: 1fr auto; column-gap: 1rem; align-items: baseline;
  padding: .9rem 1.15rem; color: inherit; text-decoration: none;
}
nav a + a { border-top: 1px solid var(--line); }
nav a:hover { background: color-mix(in srgb, var(--accent) 8%, transparent); }
nav a:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
nav b { font-weight: 600; }
nav code { color: var(--accent); font: .9rem ui-monospace, monospace; overflow-wrap: anywhere; }
nav small { grid-column: 1 / -1; color: var(--quiet); font-size: .875rem; }
</style>
</head>
<body>
<main>
<header><h1>sockledger</h1><span class="version">$version</span></header>
<p>Exact network traffic per cgroup, counted in BPF.</p>
<nav>
<a href="$metrics"><b>Metrics</b><code>$metrics</code>
<small>What Prometheus scrapes</small></a>
<a href="/-/healthy"><b>Health</b><code>/-/healthy</code>
<small>Answers while the process is alive</small></a>
<a href="/-/ready"><b>Readiness</b><code>/-/ready</code>
<small>Answers 200 once traffic is being counted</small></a>
</nav>
</main>
</body>
</html>
""")


def landing(telemetry_path: str, version: str) -> str:
    """HTML of the landing page."""
    return _LANDING.substitute(metrics=escape(telemetry_path), version=escape(version))
