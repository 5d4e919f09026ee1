// One rendered person along the spectrum: the sheet of pictures and its list become one picture, one text and a slider.

const ACROSS = 6; // pictures in a row of the sheet

/** @param {HTMLElement} root holds a sheet of as many pictures, in two rows, as its list has entries */
function start(root) {
  const image = root.querySelector("img"), steps = [...root.querySelectorAll("li")], list = root.querySelector("ol");
  const slider = Object.assign(document.createElement("input"), { type: "range", min: "0", max: String(steps.length - 1) });
  const [label, text, frame, ends] = ["label", "div", "div", "p"].map((tag) => document.createElement(tag));
  ends.className = "ends";
  ends.innerHTML = "<span>visible</span><span>near infrared</span><span>thermal</span>";
  label.append("Along the spectrum", slider);
  text.className = "step";
  text.setAttribute("aria-live", "polite");

  function show() {
    const place = Number(slider.value), name = steps[place].querySelector("b").textContent;
    frame.style.backgroundPosition = `${(100 * (place % ACROSS)) / (ACROSS - 1)}% ${place < ACROSS ? 0 : 100}%`;
    frame.setAttribute("aria-label", `The person, ${place + 1} of ${steps.length}: ${name}`);
    slider.setAttribute("aria-valuetext", `${place + 1} of ${steps.length}: ${name}`);
    text.innerHTML = `<p>${steps[place].innerHTML}</p>`;
  }

  frame.className = "frame";
  frame.setAttribute("role", "img");
  frame.style.backgroundImage = `url("${image.src}")`;
  slider.value = "0";
  slider.oninput = show;
  root.classList.add("moves");
  image.replaceWith(frame);
  list.replaceWith(text);
  root.prepend(label, ends);
  show();
}

for (const root of document.querySelectorAll('[data-move="spectrum"]')) start(root);
