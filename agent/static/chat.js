// The conversation: what is sent, what comes back, and what the buttons do.

import { answer, chips, mark, said } from "./show.js";
import { ask, feedback, relax, reload, useKey } from "./service.js";

const $ = (id) => document.getElementById(id);
const user = new URLSearchParams(location.search).get("user");
const KEPT = `evoke.session:${user ?? ""}`;
const NOTES = {
  like: (title) => `Liked ${title}: what comes next leans towards it.`,
  dislike: (title) => `Disliked ${title}: it stays out, and things like it move back.`,
  seen: (title) => `${title} is marked as seen and will not come up again.`,
};

let session = localStorage.getItem(KEPT); // null until something was said
let running = null; // aborts the answer that is being written
let retry = null; // what to do once a key is given

/** The id of a new session: nobody can guess it. */
function begin() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const id = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  localStorage.setItem(KEPT, id);
  return id;
}

async function send(message) {
  session ??= begin();
  const turn = said(message);
  const shown = answer();
  const known = { details: {}, profile: null };
  const { signal } = (running = new AbortController());
  $("log").append(turn, shown.turn);
  underway(true);
  writing(true, shown);
  shown.show();
  try {
    for await (const chunk of ask({ session, user, message, signal })) take(chunk, shown, known);
  } catch (error) {
    if (shown.empty) {
      turn.remove();
      shown.turn.remove();
      $("message").value ||= message;
    }
    signal.aborted ? note("Stopped.") : failed(error, () => submit($("message").value));
  }
  running = null;
  writing(false, shown);
}

function take(chunk, shown, known) {
  Object.assign(known.details, chunk.details);
  known.profile = chunk.profile ?? known.profile;
  if (chunk.recommendations) {
    const first = shown.empty;
    shown.items(chunk.recommendations, known);
    if (first) shown.show(); // only now is there enough below it to bring it to the top
  }
  if (chunk.constraints) constrained(chunk.constraints);
  if (chunk.degraded) shown.degraded(chunk.degraded);
  shown.words(chunk.choices?.[0]?.delta?.content ?? "");
}

async function resume() {
  const kept = session && (await reload(session));
  if (!kept) return;
  const known = { details: kept.details ?? {}, profile: kept.profile };
  for (const turn of kept.turns) {
    if (turn.role === "user") {
      $("log").append(said(turn.content));
      continue;
    }
    const shown = answer();
    shown.words(turn.content);
    shown.items(turn.items ?? [], known);
    shown.degraded(turn.degraded ?? []);
    $("log").append(shown.turn);
  }
  for (const [kind, ids] of [["seen", kept.seen], ["like", kept.liked], ["dislike", kept.disliked]]) {
    for (const id of ids ?? []) mark($("log"), id, kind);
  }
  constrained(kept.constraints);
  underway(kept.turns.length > 0);
  $("log").lastElementChild?.previousElementSibling?.scrollIntoView();
}

/** Do what a button says; where the service wants a key, ask for one and do it then. */
async function attempt(work) {
  try {
    note("");
    await work();
  } catch (error) {
    failed(error, () => attempt(work));
  }
}

function failed(error, then) {
  if (error.status === 401) {
    retry = then;
    $("key").hidden = false;
    $("secret").focus();
  }
  note(error instanceof TypeError ? "The service cannot be reached. Is it running?" : error.message);
}

function constrained(constraints) {
  chips($("chips"), constraints, (index, words) =>
    attempt(async () => {
      constrained(await relax(session, index));
      note(`“${words}” no longer holds.`);
      $("message").focus();
    }),
  );
}

function writing(on, shown) {
  shown.busy(on);
  $("send").hidden = on;
  $("stop").hidden = !on;
  if (on) note("");
}

function underway(on) {
  $("welcome").hidden = on;
  $("over").hidden = !on;
}

const note = (text) => ($("note").textContent = text);

function submit(message) {
  if (running || !message.trim()) return;
  $("message").value = "";
  send(message.trim());
  $("message").focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit($("message").value);
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit($("message").value);
});
$("surprise").addEventListener("click", () => submit($("surprise").textContent));
$("stop").addEventListener("click", () => {
  running?.abort();
  $("message").focus();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
$("over").addEventListener("click", () => {
  running?.abort();
  localStorage.removeItem(KEPT);
  session = null;
  $("log").replaceChildren();
  constrained([]);
  underway(false);
  note("A new conversation.");
  $("message").focus();
});
$("log").addEventListener("click", ({ target }) => {
  const { kind } = target.dataset;
  const card = target.closest(".card");
  if (!kind || target.getAttribute("aria-pressed") === "true") return;
  attempt(async () => {
    await feedback(session, card.dataset.item, kind);
    mark($("log"), card.dataset.item, kind);
    note(NOTES[kind](card.dataset.title));
  });
});
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("secret").value);
  $("secret").value = "";
  $("key").hidden = true;
  note("");
  $("message").focus();
  retry?.();
});

if (user) {
  $("who").textContent = `for ${user}`;
  $("who").hidden = false;
}
if (matchMedia("(pointer: fine)").matches) $("message").focus();
attempt(resume);
