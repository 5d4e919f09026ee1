// Once formulas are set and images are here, whatever is too wide is made smaller, and the title tells what is wrong.
for (const [anchor, page] of Object.entries(PAGES))
  for (const place of document.querySelectorAll(`[data-page="${anchor}"]`)) place.textContent = page;
addEventListener("load", async () => {
  if (window.MathJax) await MathJax.startup.promise;
  await document.fonts.ready;
  const lost = [...document.images].filter(image => !image.naturalWidth).length;
  const formulas = [...document.querySelectorAll("article .math")];
  const unset = formulas.filter(formula => !formula.querySelector("mjx-container")).length;
  const broken = document.querySelectorAll("mjx-merror").length;
  const width = document.body.clientWidth, page = width * 1.35;
  const size = element => parseFloat(getComputedStyle(element).fontSize);
  const texts = [...document.querySelectorAll("article pre")];
  for (const text of texts) text.style.cssText = "white-space: pre; width: max-content";
  const fits = texts.map(text => 0.99 * text.parentElement.clientWidth / text.getBoundingClientRect().width);
  const sizes = texts.map((text, place) => size(text) * (0.75 < fits[place] && fits[place] < 1 ? fits[place] : 1));
  texts.forEach((text, place) => { text.style.cssText = `font-size: ${sizes[place]}px`; });
  const room = element => element.parentElement.getBoundingClientRect().right + 1;
  let wide = [...document.querySelectorAll("article table, article mjx-container[display]")].map(e => [e, size(e)]);
  for (let scale = 0.95; scale > 0.5; scale -= 0.05) {
    wide = wide.filter(([element]) => element.getBoundingClientRect().right > room(element));
    for (const [element, whole] of wide) element.style.fontSize = `${scale * whole}px`;
  }
  const blocks = [...document.querySelectorAll("article table, article pre, article .admonition")];
  const low = blocks.filter(block => block.getBoundingClientRect().height < page / (block.matches("pre") ? 4 : 2));
  for (const block of low) block.classList.add("whole");
  const out = [...document.querySelectorAll("article *")].filter(element =>
    element.getBoundingClientRect().right > width + 2 && !element.closest("mjx-assistive-mml, svg"));
  const problems = {"lost images": lost, "formulas not set": unset, "broken formulas": broken,
    "elements cut at the right": out.length};
  const told = Object.entries(problems).filter(([, count]) => count).map(([what, count]) => `${count} ${what}`);
  if (out.length) told.push(out[0].outerHTML.slice(0, 200));
  document.title = told.length ? `unfinished: ${told.join(", ")}` : document.title.replace("unfinished: ", "");
});
