"""Pages in headless Chromium, where it is installed: what they measure there."""

import json
import re
import shutil
import subprocess
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "no Chromium here, so the pages were NOT looked at in a browser. On Debian: apt-get install chromium"

#: Opens all that is folded away, then says what is wider than it should be and what is hard to read.
MEASURE = """
<script>
addEventListener("load", () => {
  const folded = [...document.querySelectorAll("details")];
  folded.forEach(one => one.open = true);
  const width = document.documentElement.clientWidth;
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const contrast = element => {
    const style = getComputedStyle(element);
    const pair = [rgb(element.closest("svg") ? style.fill : style.color), ground(element)].map(luminance);
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  };
  const words = [...document.querySelectorAll("body *")].filter(one => !one.closest("script,style,noscript,title")
    && [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
  const beyond = [...document.querySelectorAll("table, svg, p, figure, dl, pre")].filter(one => !one.closest(".scroll")
    && one.getBoundingClientRect().right > width + 0.5).map(one => one.outerHTML.slice(0, 80));
  const target = document.querySelector(":target")?.getBoundingClientRect();
  parent.postMessage(JSON.stringify({
    width, scroll: document.documentElement.scrollWidth, beyond, words: words.length,
    faint: words.filter(one => contrast(one) < 4.5).map(one => one.outerHTML.slice(0, 80)),
    ground: getComputedStyle(document.body).backgroundColor, target: target ? [target.width, target.height] : null,
    nameless: [...document.querySelectorAll("a, summary, svg, img, progress")].filter(one =>
      !(one.textContent.trim() || one.getAttribute("aria-label") || one.alt || one.querySelector("img[alt]"))).length,
  }), "*");
});
</script>
"""
#: Shows a page as wide as asked for, a phone's width too: a window of its own is never narrower than 500 px.
FRAME = """<!DOCTYPE html><body><script>
addEventListener("message", message => {
  const measured = document.createElement("pre");
  measured.id = "measured";
  measured.textContent = message.data;
  document.body.append(measured);
});
</script><iframe src="WHERE" width="WIDTH" height="700" style="border: 0"></iframe></body>
"""


def dom(url: str, *, width: int, height: int = 800, dark: bool = False, wait_ms: int = 0) -> str:
    """Return a page's DOM once it was shown, and after `wait_ms` of its own time."""
    assert CHROMIUM
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--hide-scrollbars", "--dump-dom"]
        command += [
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        ]
        command += [f"--virtual-time-budget={wait_ms}"] if wait_ms else []
        found = subprocess.run([*command, url], capture_output=True, text=True, timeout=240, check=True)
    return found.stdout


def measured(page: str, folder: Path, *, width: int, dark: bool = False, fragment: str = "") -> dict[str, Any]:
    """Return what `MEASURE` finds on a page; its own policy, which allows no script, is left out for that."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    copy = folder / "measured.html"
    copy.write_text(page.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("WHERE", f"measured.html{fragment}").replace("WIDTH", str(width)), encoding="utf-8")
    text = dom(frame.as_uri(), width=width + 100, dark=dark, wait_ms=500)
    found = re.search(r'<pre id="measured">(.*?)</pre>', text, re.DOTALL)
    assert found, text[-2000:]
    content: dict[str, Any] = json.loads(unescape(found[1]))
    return content
