"""JupyterLab as `make lab` opens it: lessons run, knobs turn, checkers answer."""

import json
import re

import pytest
from conftest import ROOT

CELLS = "[...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell')]"
PROMPTS = f"{CELLS}.map(cell => cell.querySelector('.jp-InputPrompt')?.textContent ?? '').filter(text => text.includes('['))"  # folded cells show none
IDLE = "document.querySelector('#jp-main-statusbar')?.textContent.includes('| Idle')"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def open_notebook(watch, lab: tuple, name: str):
    """A watched page with the learner's copy of a notebook, its kernel new and idle."""
    address, _ = lab
    watched = watch(address, width=1400, height=1000)
    api, sessions = watched.page.request, f"{address}/api/sessions"
    token = {"Authorization": "token browser-test"}
    for session in api.get(sessions, headers=token).json():  # an earlier test's kernel may still be at work
        assert api.delete(f"{sessions}/{session['id']}", headers=token).ok
    watched.page.goto(f"{address}/lab/tree/learn/{name}.ipynb?reset&token=browser-test")
    watched.page.wait_for_function(IDLE, timeout=180_000)
    choose(watched.page, "Edit", "editmenu:clear-all")  # an earlier test may have had its numbers saved
    watched.page.wait_for_function(f"() => !{PROMPTS}.some(text => /\\[\\d+\\]/.test(text))", timeout=30_000)
    return watched


def run_all(page) -> None:
    """Through the menu, as a learner does, until the last cell has its number."""
    choose(page, "Run", "runmenu:run-all")
    page.wait_for_function(f"() => /\\[\\d+\\]/.test({PROMPTS}.at(-1)) && {IDLE}", timeout=300_000)


def choose(page, menu: str, command: str) -> None:
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
    page.locator(f'.lm-Menu-item[data-command="{command}"]').click()


def code_cell(page, pattern: str):
    """The first code cell whose text matches."""
    return page.locator(".jp-CodeCell", has=page.locator(".cm-content", has_text=re.compile(pattern))).first


def said(cell) -> str:
    """The text of a cell's outputs; that of cells out of sight too, which have no layout and so no inner text."""
    return " ".join(cell.locator(".jp-OutputArea-output").all_text_contents())


def assert_no_error(page) -> None:
    failed = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    assert failed.count() == 0, failed.first.text_content()[-600:]


def first_exercise() -> tuple[str, str] | None:
    """The name of the function that the first exercise of rotary asks for, and the code of its solution."""
    nb = json.loads((ROOT / "nbs" / "rotary.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in nb["cells"] if cell["cell_type"] == "code"]
    for code, after in zip(texts, texts[1:]):
        called = re.search(r"\bcheck\.\w+\((\w+)\)", after)
        if BEGIN in code and called:
            lines = [line for line in code.splitlines() if line.strip() not in (BEGIN, END)]
            return called[1], "\n".join(line for line in lines if not line.startswith("#|"))
    return None


def test_make_lab_opens_the_learners_index_which_runs(lab, watch, screenshot):
    address, folder = lab
    watched = watch(address, width=1400, height=1000)
    page = watched.page
    page.goto(f"{address}/?token=browser-test")  # what `make lab` opens
    page.wait_for_url("**/lab/tree/learn/index.ipynb*")
    page.wait_for_function(IDLE, timeout=180_000)
    assert page.locator(".jp-toast-button, .Toastify__toast").count() == 0, "something popped up"
    run_all(page)
    assert_no_error(page)
    button = page.locator(".jp-OutputArea-output .jupyter-widgets button").first
    assert button.text_content() == "Write"  # JupyterLab draws no text far out of sight, so not what is drawn
    screenshot(page, "lab-index")
    assert not [w for w in watched.wrong if not w.startswith("console")], watched.wrong


def test_rotary_runs_and_a_slider_changes_the_picture(lab, watch, screenshot):
    watched = open_notebook(watch, lab, "rotary")
    page = watched.page
    run_all(page)
    assert_no_error(page)
    box = page.locator(".jp-OutputArea-output .jupyter-widgets:has(.noUi-handle):has(img)").first
    picture = box.locator("img").first
    before, alt = picture.get_attribute("src"), picture.get_attribute("alt")
    box.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    for _ in range(50):
        if box.locator("img").first.get_attribute("src") != before:
            break
        page.wait_for_timeout(100)
    picture = box.locator("img").first
    assert picture.get_attribute("src") != before, "the slider moved and the picture did not"
    assert picture.get_attribute("alt") not in ("", None, alt), "the words still describe the old picture"
    screenshot(page, "lab-rotary-slider")
    assert not [w for w in watched.wrong if not w.startswith("console")], watched.wrong


@pytest.mark.skipif(first_exercise() is None, reason="no notebook has an exercise with a checker")
def test_a_checker_shows_its_failure_and_its_success(lab, watch, screenshot):
    name, solution = first_exercise()
    page = open_notebook(watch, lab, "rotary").page
    run_all(page)
    checker = code_cell(page, rf"check\.\w+\({name}\)")
    checker.locator(".jp-OutputArea-output").first.wait_for(state="attached")  # outputs come after the number
    failed = said(checker)
    assert len(failed.split()) > 5 and "✓" not in failed, failed
    checker.scroll_into_view_if_needed()
    screenshot(page, "lab-checker-failure")
    editor = code_cell(page, rf"def {name}\(").locator(".cm-content")
    editor.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(solution)
    assert "".join(editor.all_text_contents()).split() == "".join(solution.splitlines()).split()
    page.keyboard.press("Shift+Enter")
    checker.locator(".cm-content").click()  # a slow machine may take the next key before the next cell is chosen
    page.keyboard.press("Shift+Enter")
    checker.locator(".jp-OutputArea", has_text="✓").wait_for(state="attached", timeout=180_000)  # drawn or not
    checker.scroll_into_view_if_needed()
    passed = said(checker)
    assert name in passed and passed != failed, passed
    screenshot(page, "lab-checker-success")
