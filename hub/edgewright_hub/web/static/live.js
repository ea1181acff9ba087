// Swaps the main section for a fresh one whenever the hub says that something changed.
"use strict";

const state = document.getElementById("live");
let busy = false, again = false;

function say(text, tone) {
  state.textContent = text;
  state.className = tone;
}

async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    const answer = await fetch(location.pathname, { cache: "no-store", headers: { Accept: "text/html" } });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
    say("live", "good");
  } catch {
    say("the hub does not answer; trying again", "bad");
  }
  busy = false;
  if (again) { again = false; setTimeout(refresh, 250); }
}

const source = new EventSource("/live");
source.addEventListener("changed", refresh);
source.onerror = () => say("the hub does not answer; trying again", "bad");
