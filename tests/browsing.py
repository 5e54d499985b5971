"""A page in a browser: its width, its images, its complaints and what it fetches."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest

BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  document.title = JSON.stringify({
    width: document.documentElement.scrollWidth - innerWidth,
    images: images.length,
    broken: images.filter(image => !image.naturalWidth).length,
  });
});
</script>"""


def found_browser():
    """Return the path of a browser; skip the test where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"there is no browser here: {', '.join(BROWSERS)}")
    return found


def opened(browser, page, tmp_path, width):
    """Open a page; return the probe's numbers, the console lines and the requested addresses."""
    probed = tmp_path / "page.html"
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    net = tmp_path / "net.json"
    words = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--enable-logging=stderr", f"--log-net-log={net}", f"--user-data-dir={tmp_path / 'me'}"),
        *(f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom"),
    ]
    done = subprocess.run(
        [browser, *words, probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)[1]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # Requests of the browser itself are not counted.
    asked = re.findall(r'"network_isolation_key":"file:.*?"url":"([^"]*)"', net.read_text())
    return json.loads(title), said, set(asked)
