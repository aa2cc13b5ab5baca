"use strict";
const search = document.getElementById("search");
search.hidden = false;
search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const entry of document.querySelectorAll("nav li")) {
    const text = entry.dataset.search;
    entry.hidden = !words.every((word) => text.includes(word));
  }
});
