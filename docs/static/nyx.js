// What the pages need beyond the theme: where widgets find their fonts, names for sliders, and searching from disk.
(() => {
  const root = new URL(document.documentElement.dataset.content_root || "./", location.href);
  const files = new URL("_static", root).href;
  const paths = { "@jupyter-widgets": files, "@jupyter-widgets/html-manager/dist": files };
  if (typeof window.requirejs === "function") window.requirejs.config({ paths });
  else window.require = { paths };

  // Summaries of search results are fetched, which browsers do not allow for files; the results come without them.
  document.addEventListener("DOMContentLoaded", () => {
    if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS === "object") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  });

  // Widgets with text ask MathJax 2 to typeset it; the pages have MathJax 3.
  window.addEventListener("load", () => {
    const typeset = ([command, , element]) => command === "Typeset" && element && MathJax.typesetPromise?.([element]);
    if (window.MathJax && !MathJax.Hub) MathJax.Hub = { Queue: (...jobs) => jobs.forEach(typeset) };
  });

  const views = 'script[type="application/vnd.jupyter.widget-view+json"]';

  function nameSliders() {
    for (const handle of document.querySelectorAll(".noUi-handle:not([aria-label])")) {
      const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label");
      handle.setAttribute("aria-label", label?.textContent.trim() || "slider");
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    // The theme names this button "Search" over the words "Search Ctrl+K" on it: its own words are the better name.
    for (const button of document.querySelectorAll(".search-button-field[aria-label]")) button.removeAttribute("aria-label");
    for (const view of document.querySelectorAll(views)) {
      const note = document.createElement("p");
      note.className = "needs-kernel";
      note.textContent = "Knobs and buttons work in JupyterLab (make lab); here they show how they were left.";
      view.closest(".cell_output")?.append(note);
    }
    if (document.querySelector(views)) new MutationObserver(nameSliders).observe(document.body, { childList: true, subtree: true });
  });
})();
