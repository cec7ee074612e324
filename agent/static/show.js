// What the service says, as elements. Text goes in by textContent alone: markup in a title or an answer stays text.

const CHANNELS = {
  queries: "Fits a description of what you want",
  named: "Came to the model's mind for you, or goes with what did",
  dense: "Reads like what you liked",
  collaborative: "Liked by people who liked the same things",
  lexical: "Shares words with your request",
  popular: "Liked by many people",
  base: "Stands out when everything your history says is weighed together",
};
const STAGES = {
  understanding: "your message was read by simple rules",
  stream: "the answer was cut short",
  interests: "your taste was not put into words",
  recall: "fewer ways of finding things were used",
  rank: "the order was not looked over again",
  explain: "the reasons come straight from the catalog",
};

const REASONS = 3; // beyond these, a place among hundreds explains nothing

const clone = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** An element with text and children. */
function made(tag, text = "", ...children) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...children);
  return element;
}

/** What the person said. */
export function said(text) {
  const turn = clone("said");
  turn.querySelector("p").textContent = text;
  return turn;
}

/** An answer to be filled: `words`, `items`, `degraded` and `busy` show what has come so far. */
export function answer() {
  const turn = clone("answer");
  const [words, cards, lapses] = [".words", ".cards", ".degraded"].map((part) => turn.querySelector(part));
  let text = "";
  // The answer's numbered lines say in words what the cards show.
  const write = () => {
    words.textContent = cards.children.length ? text.replaceAll(/^\d+\. .*\n?/gm, "").trim() : text;
  };
  return {
    turn,
    busy(on) {
      turn.classList.toggle("busy", on);
      words.setAttribute("aria-busy", on); // read out once, when it is whole
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
      lapses.hidden = !stages.length;
      if (!stages.length) return;
      const plain = stages.map(({ stage }) => STAGES[stage] ?? `${stage} did without it`);
      lapses.querySelector("summary").textContent = `The language model is not at its best just now: ${listed(plain)}.`;
      lapses.querySelector("ul").replaceChildren(...stages.map(({ stage, reason }) => made("li", `${stage}: ${reason}`)));
    },
  };
}

/** Cards for the items, in order. A card that is there already is updated in place, so that focus and what is open stay. */
function fill(list, items, known) {
  const there = new Map([...list.children].map((card) => [card.dataset.item, card]));
  const cards = items.map((item) => update(there.get(item.id) ?? card(item), item, known));
  if (cards.some((one, i) => one !== list.children[i]) || list.children.length !== cards.length) list.replaceChildren(...cards);
}

function card(item) {
  const li = clone("card");
  const why = li.querySelector(".why");
  const because = li.querySelector(".because");
  li.dataset.item = item.id;
  li.dataset.title = item.title;
  li.querySelector("h3").textContent = item.title;
  for (const act of li.querySelectorAll("[data-kind]")) act.setAttribute("aria-label", `${act.textContent}: ${item.title}`);
  why.setAttribute("aria-label", `Why this? ${item.title}`);
  why.addEventListener("click", () => {
    because.hidden = !because.hidden;
    why.setAttribute("aria-expanded", !because.hidden);
  });
  return li;
}

function update(li, item, { details, profile }) {
  const about = details[item.id] ?? {};
  li.querySelector(".rank").textContent = item.rank;
  li.querySelector(".facts").textContent = (about.facts ?? "").replaceAll("; ", " · ");
  li.querySelector(".reason").textContent = item.explanation || about.text || "";
  li.querySelector(".because").replaceChildren(...reasons(item, details, profile));
  return li;
}

function reasons(item, details, profile) {
  const best = Object.entries(item.channels).sort(([, a], [, b]) => a - b).slice(0, REASONS);
  const found = best.map(([name, rank]) => made("li", `${CHANNELS[name] ?? name} `, made("span", `place ${rank}`)));
  const parts = [made("h4", "How it was found"), made("ul", "", ...found)];
  if (item.evidence.length) {
    parts.push(made("h4", "Because you liked"), made("p", listed(item.evidence.map((id) => details[id]?.title ?? id))));
  }
  if (profile?.summary) parts.push(made("h4", "What is known of your taste"), made("p", profile.summary));
  parts.push(made("p", `Score ${item.score.toFixed(2)} of 1`));
  return parts;
}

/** Chips for the constraints; `lift(index)` is called when one is removed. */
export function chips(list, constraints, lift) {
  list.hidden = !constraints.length;
  list.replaceChildren(
    ...constraints.map(({ words }, index) => {
      const button = made("button", words, made("span", "×"));
      button.type = "button";
      button.lastChild.setAttribute("aria-hidden", "true");
      button.setAttribute("aria-label", `Remove: ${words}`);
      button.addEventListener("click", () => lift(index, words));
      return made("li", "", button);
    }),
  );
}

/** Show on every card of the item what was said of it. */
export function mark(log, item, kind) {
  for (const li of log.querySelectorAll(`[data-item="${CSS.escape(item)}"]`)) {
    li.dataset.mark = kind;
    for (const act of li.querySelectorAll("[data-kind]")) act.setAttribute("aria-pressed", act.dataset.kind === kind);
  }
}

const listed = (parts) => new Intl.ListFormat("en").format(parts);
