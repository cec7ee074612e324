// Page elements for messages and answers. Text is set with textContent only, so markup in a title or an answer stays text.

const CHANNELS = {
  queries: "Fits a description of what you want",
  named: "Suggested by the language model, or often chosen with its suggestions",
  dense: "Reads like what you liked",
  collaborative: "Liked by people who liked the same things",
  lexical: "Shares words with your request",
  popular: "Liked by many people",
  base: "Ranked high by your whole history",
};
const STAGES = {
  understanding: "your message was read with simple rules",
  stream: "the answer was cut short",
  interests: "your taste was not summarised",
  recall: "fewer retrieval methods were used",
  rank: "the model did not check the order",
  explain: "the explanations come from the catalog's fields",
};

const REASONS = 3; // further channels explain little

const clone = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** Creates an element with text and children. */
function element(tag, text = "", ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

/** Creates the element of a message of the user. */
export function userMessage(text) {
  const turn = clone("user-message");
  turn.querySelector("p").textContent = text;
  return turn;
}

/** Creates an empty answer, which is filled with `words`, `items`, `degraded` and `busy` as they arrive. */
export function answer() {
  const turn = clone("answer");
  const [words, cards, problems] = [".words", ".cards", ".degraded"].map((part) => turn.querySelector(part));
  let text = "";
  // The numbered lines of the answer repeat the cards, so they are not shown.
  const write = () => {
    words.textContent = cards.children.length ? text.replaceAll(/^\d+\. .*\n?/gm, "").trim() : text;
  };
  return {
    turn,
    busy(on) {
      turn.classList.toggle("busy", on);
      words.setAttribute("aria-busy", on); // screen readers read it once, when it is complete
    },
    show() {
      turn.previousElementSibling.scrollIntoView();
    },
    get empty() {
      return !text && !cards.children.length;
    },
    words(more) {
      text += more;
      write();
    },
    items(items, known) {
      fill(cards, items, known);
      write();
    },
    degraded(stages) {
      problems.hidden = !stages.length;
      if (!stages.length) return;
      const plain = stages.map(({ stage }) => STAGES[stage] ?? `${stage} did not use it`);
      problems.querySelector("summary").textContent = `The language model is not fully available: ${listed(plain)}.`;
      problems.querySelector("ul").replaceChildren(...stages.map(({ stage, reason }) => element("li", `${stage}: ${reason}`)));
    },
  };
}

/** Shows cards for the items, in order. An existing card is updated in place, so that its focus and open parts stay. */
function fill(list, items, known) {
  const there = new Map([...list.children].map((card) => [card.dataset.item, card]));
  const cards = items.map((item) => update(there.get(item.id) ?? card(item), item, known));
  if (cards.some((one, i) => one !== list.children[i]) || list.children.length !== cards.length) list.replaceChildren(...cards);
}

function card(item) {
  const li = clone("card");
  const why = li.querySelector(".why");
  const reasonsBox = li.querySelector(".reasons");
  li.dataset.item = item.id;
  li.dataset.title = item.title;
  li.querySelector("h3").textContent = item.title;
  for (const act of li.querySelectorAll("[data-kind]")) act.setAttribute("aria-label", `${act.textContent}: ${item.title}`);
  why.setAttribute("aria-label", `Why this? ${item.title}`);
  why.addEventListener("click", () => {
    reasonsBox.hidden = !reasonsBox.hidden;
    why.setAttribute("aria-expanded", !reasonsBox.hidden);
  });
  return li;
}

function update(li, item, { details, profile }) {
  const about = details[item.id] ?? {};
  li.querySelector(".rank").textContent = item.rank;
  li.querySelector(".facts").textContent = (about.facts ?? "").replaceAll("; ", " · ");
  li.querySelector(".reason").textContent = item.explanation || about.text || "";
  li.querySelector(".reasons").replaceChildren(...reasons(item, details, profile));
  return li;
}

function reasons(item, details, profile) {
  const best = Object.entries(item.channels).sort(([, a], [, b]) => a - b).slice(0, REASONS);
  const found = best.map(([name, rank]) => element("li", `${CHANNELS[name] ?? name} `, element("span", `place ${rank}`)));
  const parts = [element("h4", "How it was found"), element("ul", "", ...found)];
  if (item.evidence.length) {
    parts.push(element("h4", "Because you liked"), element("p", listed(item.evidence.map((id) => details[id]?.title ?? id))));
  }
  if (profile?.summary) parts.push(element("h4", "Your profile"), element("p", profile.summary));
  parts.push(element("p", `Score ${item.score.toFixed(2)} of 1`));
  return parts;
}

/** Shows the constraints as chips; calls `remove(index, words)` when one is clicked. */
export function chips(list, constraints, remove) {
  list.hidden = !constraints.length;
  list.replaceChildren(
    ...constraints.map(({ words }, index) => {
      const button = element("button", words, element("span", "×"));
      button.type = "button";
      button.lastChild.setAttribute("aria-hidden", "true");
      button.setAttribute("aria-label", `Remove: ${words}`);
      button.addEventListener("click", () => remove(index, words));
      return element("li", "", button);
    }),
  );
}

/** Shows the feedback on an item on all of its cards. */
export function mark(log, item, kind) {
  for (const li of log.querySelectorAll(`[data-item="${CSS.escape(item)}"]`)) {
    li.dataset.mark = kind;
    for (const act of li.querySelectorAll("[data-kind]")) act.setAttribute("aria-pressed", act.dataset.kind === kind);
  }
}

const listed = (parts) => new Intl.ListFormat("en").format(parts);
