// The conversation: sending messages, showing answers, and the actions of the buttons.

import { answer, chips, mark, userMessage } from "./show.js";
import { ask, feedback, relax, reload, useKey } from "./service.js";

const $ = (id) => document.getElementById(id);
const user = new URLSearchParams(location.search).get("user");
const STORED = `evoke.session:${user ?? ""}`;
const NOTES = {
  like: (title) => `Liked ${title}: the next results will be closer to it.`,
  dislike: (title) => `Disliked ${title}: it will not be shown again, and similar items move down.`,
  seen: (title) => `${title} is marked as seen and will not be shown again.`,
};

let session = localStorage.getItem(STORED); // null until the first message
let running = null; // aborts the current answer
let retry = null; // the action to repeat once a key is given

/** Returns the id of a new session, which nobody can guess. */
function newSession() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const id = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  localStorage.setItem(STORED, id);
  return id;
}

async function send(message) {
  session ??= newSession();
  const turn = userMessage(message);
  const shown = answer();
  const known = { details: {}, profile: null };
  const { signal } = (running = new AbortController());
  $("log").append(turn, shown.turn);
  setStarted(true);
  setWriting(true, shown);
  shown.show();
  try {
    for await (const chunk of ask({ session, user, message, signal })) showChunk(chunk, shown, known);
  } catch (error) {
    if (shown.empty) {
      turn.remove();
      shown.turn.remove();
      $("message").value ||= message;
    }
    signal.aborted ? note("Stopped.") : showError(error, () => submit($("message").value));
  }
  running = null;
  setWriting(false, shown);
}

function showChunk(chunk, shown, known) {
  Object.assign(known.details, chunk.details);
  known.profile = chunk.profile ?? known.profile;
  if (chunk.recommendations) {
    const first = shown.empty;
    shown.items(chunk.recommendations, known);
    if (first) shown.show(); // only now is the page long enough to scroll it to the top
  }
  if (chunk.constraints) showConstraints(chunk.constraints);
  if (chunk.degraded) shown.degraded(chunk.degraded);
  shown.words(chunk.choices?.[0]?.delta?.content ?? "");
}

async function resume() {
  const stored = session && (await reload(session));
  if (!stored) return;
  const known = { details: stored.details ?? {}, profile: stored.profile };
  for (const turn of stored.turns) {
    if (turn.role === "user") {
      $("log").append(userMessage(turn.content));
      continue;
    }
    const shown = answer();
    shown.words(turn.content);
    shown.items(turn.items ?? [], known);
    shown.degraded(turn.degraded ?? []);
    $("log").append(shown.turn);
  }
  for (const [kind, ids] of [["seen", stored.seen], ["like", stored.liked], ["dislike", stored.disliked]]) {
    for (const id of ids ?? []) mark($("log"), id, kind);
  }
  showConstraints(stored.constraints);
  setStarted(stored.turns.length > 0);
  $("log").lastElementChild?.previousElementSibling?.scrollIntoView();
}

/** Runs the action of a button. If the service needs a key, asks for one and then repeats the action. */
async function attempt(work) {
  try {
    note("");
    await work();
  } catch (error) {
    showError(error, () => attempt(work));
  }
}

function showError(error, then) {
  if (error.status === 401) {
    retry = then;
    $("key").hidden = false;
    $("secret").focus();
  }
  note(error instanceof TypeError ? "The service cannot be reached. Is it running?" : error.message);
}

function showConstraints(constraints) {
  chips($("chips"), constraints, (index, words) =>
    attempt(async () => {
      showConstraints(await relax(session, index));
      note(`Constraint removed: ${words}.`);
      $("message").focus();
    }),
  );
}

function setWriting(on, shown) {
  shown.busy(on);
  $("send").hidden = on;
  $("stop").hidden = !on;
  if (on) note("");
}

function setStarted(on) {
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
  localStorage.removeItem(STORED);
  session = null;
  $("log").replaceChildren();
  showConstraints([]);
  setStarted(false);
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
