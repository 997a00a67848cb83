"use strict";
const root = document.documentElement;
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

// Light and dark: the reader's system decides until the button is used.
function remembered(value) {
  try {
    if (value) localStorage.setItem("passband-theme", value);
    return localStorage.getItem("passband-theme");
  } catch {
    return null; // pages opened from a disk may have no storage
  }
}
if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remembered(root.dataset.theme);
});

// Tables sort by the column whose head is pressed; empty cells stay last.
for (const button of all(".sort")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.children[head.cellIndex].dataset.value ?? "";
    const number = all("tr", body).every((row) => !key(row) || !Number.isNaN(Number(key(row))));
    const order = (a, b) => (number ? Number(a) - Number(b) : a.localeCompare(b)) * (up ? 1 : -1);
    const rows = all("tr", body).sort((a, b) =>
      !key(a) || !key(b) ? Number(!key(a)) - Number(!key(b)) : order(key(a), key(b)));
    body.append(...rows);
  });
}

// The legend hides and shows a system in its task's charts; pointing at it picks the system out.
for (const button of all(".legend button")) {
  const card = button.closest(".card");
  const groups = (own) => all(".chart .series", card)
    .filter((g) => (g.dataset.series === button.dataset.series) === own);
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!shown));
    groups(true).forEach((g) => g.classList.toggle("hidden", shown));
  });
  const fade = (on) => groups(false).forEach((g) => g.classList.toggle("faded", on));
  button.addEventListener("mouseenter", () => fade(true));
  button.addEventListener("mouseleave", () => fade(false));
}

for (const button of all(".copy")) {
  button.addEventListener("click", async () => {
    const status = document.getElementById("status");
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      status.textContent = "Copied";
      button.firstChild.textContent = "Copied";
      setTimeout(() => { button.firstChild.textContent = "Copy"; }, 1500);
    } catch {
      const range = document.createRange(); // no clipboard here: select it for the reader
      range.selectNodeContents(button.parentElement.querySelector("code"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      status.textContent = "Selected; copy it with the keyboard";
    }
  });
}

addEventListener("beforeprint", () => all("details").forEach((d) => { d.open = true; }));
