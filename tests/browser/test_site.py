"""The docs site: whole, silent, offline, readable by all."""

import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from conftest import HTML, ROOT

AXE = ROOT / "docs" / "node_modules" / "axe-core" / "axe.min.js"
WIDGETS = 'script[type="application/vnd.jupyter.widget-view+json"]'
PAGES = sorted(p.relative_to(HTML).with_suffix("").as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts)
MODULES = sorted(p.stem for p in (ROOT / "nyx").glob("[a-z]*.py"))
KEPT = ("index", "rotary", "attention", "api/rotary", "api/index", "glossary", "notation")  # to look at

each_page = pytest.mark.parametrize("name", PAGES)


class Parsed(HTMLParser):
    """The anchors of a page, and where it leads."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.images = set(), [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        self.links += [attrs[key] for key in ("href", "src") if attrs.get(key)]
        self.images += tag == "img"


@pytest.fixture(scope="session")
def parsed(site) -> dict[Path, Parsed]:
    return {site / f"{name}.html": Parsed(site / f"{name}.html") for name in PAGES}


def settle(page) -> None:
    """Wait until formulas are typeset and widgets are drawn."""
    page.wait_for_load_state("load")
    page.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise")
    page.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise.then(() => true)")
    drawn = f"[...document.querySelectorAll('{WIDGETS}')].every(s => s.parentElement.querySelector('.jupyter-widgets'))"
    page.wait_for_function(drawn, timeout=10_000)


def overflow(page) -> list[str]:
    """What sticks out of the window to the right."""
    return page.evaluate("""() => document.documentElement.scrollWidth <= innerWidth ? [] :
        [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
        .slice(0, 5).map(e => e.outerHTML.slice(0, 100))""")


def offences(page, rules: dict) -> list[str]:
    """What axe finds against WCAG 2.1 A and AA, one line for each kind and place."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("options => axe.run(document, options).then(r => r.violations)", rules)
    return [f"{v['id']}: {n['target']} {n['html'][:120]} {n['any'][:1] and n['any'][0]['message']}"
            for v in found for n in v["nodes"][:3]]  # fmt: skip


AA = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}, "resultTypes": ["violations"]}
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}, "resultTypes": ["violations"]}


def test_the_site_has_all_pages():
    notebooks = {p.relative_to(ROOT / "nbs").with_suffix("").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")}
    wanted = {n for n in notebooks if not re.search(r"(^|/)[._]", n)} | {f"api/{m}" for m in MODULES}
    wanted |= {p.stem for p in (ROOT / "docs").glob("*.md")} | {"search", "genindex"}
    assert wanted <= set(PAGES)


@each_page
def test_a_page_served_is_silent_typeset_narrow_and_readable(name, served, watch, screenshot):
    watched = watch(served, color_scheme="light", reduced_motion="reduce")
    page = watched.page
    page.goto(f"{served}/{name}.html")
    settle(page)
    formulas, typeset = (page.locator(f"article {s}").count() for s in (".math", "mjx-container"))
    assert typeset >= formulas, f"{formulas} formulas, {typeset} typeset"
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert not (bad := offences(page, AA)), "\n".join(bad)
    if name in KEPT:
        screenshot(page, f"site-{name}-light")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(100 if name not in KEPT else 600)  # side bars slide away
    assert not (wide := overflow(page)), wide
    if name in KEPT:
        screenshot(page, f"site-{name}-phone")
    assert not watched.wrong, watched.wrong


@each_page
def test_a_page_from_disk_is_silent_and_readable_in_the_dark(name, site, watch, screenshot):
    watched = watch(site.as_uri(), color_scheme="dark")
    page = watched.page
    page.goto(f"{site.as_uri()}/{name}.html")
    settle(page)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not (bad := offences(page, CONTRAST)), "\n".join(bad)
    if name in KEPT:
        screenshot(page, f"site-{name}-dark")
    assert not watched.wrong, watched.wrong


def test_no_link_or_anchor_is_dead(parsed, site):
    dead = []
    for path, page in parsed.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            if urlparse(link).scheme in ("http", "https", "data", "mailto") or link.startswith("javascript"):
                continue
            target = (path.parent / unquote(urlparse(address).path)).resolve() if address else path
            if not target.exists() or not target.is_relative_to(site):
                dead.append(f"{path.name}: {link} leads nowhere")
            elif anchor and target in parsed and unquote(anchor) not in parsed[target].ids:
                dead.append(f"{path.name}: {link} names no anchor")
    assert not dead, "\n".join(sorted(set(dead))[:40])


@pytest.mark.parametrize("where", ["served", "disk"])
def test_search_finds_xpos_from_the_keyboard(where, served, site, watch, screenshot):
    home = served if where == "served" else site.as_uri()
    watched = watch(home)
    page = watched.page
    page.goto(f"{home}/index.html")
    settle(page)
    page.keyboard.press("Control+k")
    page.keyboard.type("XPOS")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?*")
    page.wait_for_function("document.querySelectorAll('#search-results li a').length >= 3")
    found = [
        a.split("?")[0].split("#")[0]
        for a in page.eval_on_selector_all("#search-results li a", "e => e.map(a => a.href)")
    ]
    assert {f"{home}/rotary.html", f"{home}/glossary.html"} <= set(found), found
    page.wait_for_timeout(300)
    screenshot(page, f"site-search-{where}")
    assert not watched.wrong, watched.wrong


def test_the_page_can_be_used_from_the_keyboard(served, watch, screenshot):
    page = watch(served).page
    page.goto(f"{served}/rotary.html")
    settle(page)
    page.keyboard.press("Tab")
    assert "skip" in page.evaluate("document.activeElement.textContent").lower()
    for theme in ("dark", "light"):
        page.locator("button.theme-switch-button").focus()
        page.keyboard.press("Enter")
        page.locator(f"button.theme-change-button[data-mode={theme}]").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.documentElement.dataset.theme") == theme
    folded = page.locator("details:not([open]) > summary").first
    folded.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open") is True
    focused = page.locator(".noUi-handle").first
    focused.focus()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')")


def stored(notebook: str) -> tuple[int, int]:
    """How many pictures and widget views the shown cells of a notebook store."""
    nb = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    cells = [c for c in nb["cells"] if not re.match(r"#\|\s*(hide|default_exp)\b", "".join(c["source"]))]
    data = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
    views = sum("application/vnd.jupyter.widget-view+json" in d for d in data)
    return sum("image/png" in d for d in data) - views, views


@pytest.mark.parametrize("name", ["index", "data", "rotary", "attention", "lora", "model", "training", "sampling"])
def test_a_lesson_shows_its_outputs_and_widgets(name, served, watch):
    page = watch(served).page
    page.goto(f"{served}/{name}.html")
    settle(page)
    pictures, views = stored(name)
    assert page.locator(WIDGETS).count() == views
    assert page.locator(".cell_output img").count() >= pictures + (views and 1 if name != "index" else 0)
    small = "e => e.filter(i => i.naturalWidth < 50 || !i.alt.trim()).map(i => i.outerHTML.slice(0, 80))"
    assert not (bad := page.eval_on_selector_all("article img", small)), bad


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module, parsed, site):
    names = importlib.import_module(f"nyx.{module}").__all__
    page = parsed[site / "api" / f"{module}.html"]
    missing = [name for name in names if f"nyx.{module}.{name}" not in page.ids]
    assert not missing, missing
    text = (site / "api" / f"{module}.html").read_text(encoding="utf-8")
    entries = re.split(rf'<dt class="sig sig-object py" id="nyx\.{module}\.(\w+)"', text)
    told = dict(zip(entries[1::2], entries[2::2]))
    bare = [
        name for name in names if not re.search(r'Built in the \w+.*?href="\.\./[\w/]+\.html#[\w-]+"', told[name], re.S)
    ]
    assert not bare, f"no link to a lesson: {bare}"


def test_the_reference_gives_shapes_and_leads_to_torch(site):
    text = re.sub(r"<[^>]+>", "", (site / "api" / "rotary.html").read_text(encoding="utf-8"))
    assert re.search(r"apply_rotary\(\s*x: Float\[Tensor, &#39;\*batch n d&#39;\],?\s", text) or "*batch n d" in text
    links = (site / "api" / "kernels.html").read_text(encoding="utf-8")
    assert "docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html" in links
    links = (site / "api" / "attention.html").read_text(encoding="utf-8")
    assert "docs/stable/tensors.html" in links


@pytest.mark.parametrize("name", ["data", "rotary", "attention", "lora", "model", "training", "sampling"])
def test_lessons_lead_to_the_glossary(name, parsed, site):
    leads = {link for link in parsed[site / f"{name}.html"].links if link.startswith("glossary.html#")}
    assert len(leads) >= 5, leads
