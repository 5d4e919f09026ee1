// Blocks that scroll sideways can be scrolled with the keyboard: they take the focus, for as long as they scroll.
const sideways = new ResizeObserver((entries) => {
  for (const { target } of entries)
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
});

async function watch() {
  await window.MathJax?.startup?.promise;
  const blocks = ".bd-article :is(pre, .pst-scrollable-table-container, .cell_output .output, mjx-container[display])";
  for (const block of document.querySelectorAll(blocks)) sideways.observe(block);
}

addEventListener("load", watch);

// The arrows that unfold the contents say what they unfold.
for (const arrow of document.querySelectorAll(".bd-docs-nav summary"))
  arrow.setAttribute("aria-label", `Pages under ${arrow.closest("li").querySelector("a").textContent.trim()}`);
