"use strict";
// The page of one view: what minillama/look/data.py computes of one text, see its docstring for the keys.
//
// Token t is guessed at position t - 1, where the model has read everything before it. So of the chosen token t are shown: what was
// expected at t - 1, where the heads looked from t - 1, the lens at t - 1; and t's own loss. t = number of tokens means what comes next.
//
// Texts come from anywhere. They reach the page through textContent only, and what has no shape of its own is spelled out: visible().

const MISTAKE = 0.5;                // nats lost beyond what could not be known, from which on the page calls it a mistake
const FULL = 4;                     // nats at which a colour is full
const LINES = 5;                    // tokens a head looks at most, that get a line

const state = {
  view: JSON.parse(document.getElementById("view").textContent),
  t: 1,                             // the chosen token
  layer: 0, head: 0,
  colour: null,                     // a key of COLOURS
  off: [],                          // heads that are switched off: "layer.head"
  ablated: null,                    // losses without them
  then: null,                       // {name, losses} of another checkpoint
  other: null,                      // the view of another run
};
let maps = null;                    // attention as bytes
const fetched = new Map();          // what the server was asked about this view

// ------------------------------------------------------------------------------------------------------------------ small helpers

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function draw(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** A text in which every character can be seen: controls, invisible and direction-changing ones, lone surrogates are spelled ⟨U+202E⟩. */
function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥")
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u115F\u1160\u3164\uFFA0\u2800\uFE00-\uFE0F]/gu,
      (sign) => `⟨U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

const quote = (piece) => make("q", { textContent: visible(piece) });
const name = (t) => (state.view.tokens[t] ? state.view.tokens[t].piece : "what comes next");
const minus = (text) => text.replace("-", "−");
const nats = (x) => (x === null || x === undefined ? "–" : minus(x.toFixed(2).replace(/^-0\.00$/, "0.00")));
const change = (x) => (x >= 0.005 ? "+" : "") + nats(x);
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

function percent(p) {
  if (p === null || p === undefined) return "–";
  if (p === 0) return "0 %";
  if (p < 0.0001) return "< 0.01 %";
  return `${(100 * p).toFixed(p < 0.001 ? 2 : p < 0.0995 ? 1 : 0)} %`;
}

/** Is anything known of what could be known? Of a built-in text it is, as far as the grammar can read it. */
const isKnown = () => state.view.tokens.some((token) => token.known !== null);

/** Nats lost beyond what could not be known, null where that is not known; of other texts, the loss alone. */
function lost(token) {
  if (!token || token.loss === null) return null;
  return isKnown() ? (token.known === null ? null : token.loss - token.known) : token.loss;
}

/** Colour a node by a value: orange, and blue below 0; all blue where `blue` says so. */
function shade(node, value, full = FULL, blue = false) {
  node.classList.toggle("warm", value > 0 && !blue);
  node.classList.toggle("cool", value < 0 || blue);
  node.style.setProperty("--v", Math.min(1, Math.abs(value || 0) / full).toFixed(3));
  return node;
}

// --------------------------------------------------------------------------------------------------------------------- the server

const turns = {};

/** What the page asks by itself: its answer must not take away the sentence that refuses what the reader has asked. */
const UNASKED = new Set(["influence", "attention"]);

/** What the server says. Undefined if it was asked again in the meantime, or could not answer, which the page then shows. */
async function ask(what, body) {
  const turn = turns[what] = (turns[what] || 0) + 1;
  $("busy").textContent = "computing …";
  let said;
  try {
    const response = await fetch(`api/${what}`, { method: "POST", body: JSON.stringify(body) });
    said = await response.json();
  } catch {
    said = { error: "the server does not answer: is it still running in the terminal?" };
  }
  if (turn !== turns[what]) return undefined;
  $("busy").textContent = "";
  if (said.error || !UNASKED.has(what)) {
    $("error").hidden = !said.error;
    $("error").textContent = said.error ? visible(said.error) : "";
  }
  return said.error ? undefined : said;
}

/** The same, asked once for each view. */
async function once(what, body) {
  const key = JSON.stringify([what, body]);
  if (!fetched.has(key)) {
    const said = await ask(what, body);
    if (said) fetched.set(key, said);
  }
  return fetched.get(key);
}

const place = (position) => ({ text: state.view.text, checkpoint: state.view.checkpoint, position });

// ------------------------------------------------------------------------------------------------------------------ what is shown

const cell = (layer, head) => layer * state.view.model.n_heads + head;
const headName = (layer, head) => `layer ${layer}, head ${head}`;
const isOff = (layer, head) => state.off.includes(`${layer}.${head}`);

/** Weights of one head at one position: bytes, 255 for all of the attention. Null where they are not here (yet). */
function weights(layer, head, position) {
  const T = state.view.tokens.length;
  if (maps) return maps.subarray((cell(layer, head) * T + position) * T, (cell(layer, head) * T + position) * T + T);
  const row = fetched.get(JSON.stringify(["attention", place(position)]));
  return row?.bytes ? row.bytes.subarray(cell(layer, head) * T, (cell(layer, head) + 1) * T) : null;
}

/** The tokens that a head looks at most from a position: [[position, weight], ...]. */
function strongest(layer, head, position, n) {
  const row = weights(layer, head, position);
  if (!row) return [];
  return [...row.subarray(0, position + 1)].map((byte, s) => [s, byte / 255]).filter(([, w]) => w >= 0.02)
    .sort((a, b) => b[1] - a[1]).slice(0, n);
}

function unpack(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** The change of token t's loss without a head, measured. Null where it is not known. */
const ablation = (layer, head, t) => state.view.ablation?.[cell(layer, head)]?.[t] ?? null;

/** [layer, head] without which token t would cost most. Null where it is not known. */
function headThatMatters(t) {
  const { n_layers: L, n_heads: H } = state.view.model;
  let best = null;
  for (let layer = 0; layer < L; layer++) {
    for (let head = 0; head < H; head++) {
      const effect = ablation(layer, head, t);
      if (effect !== null && effect > 0 && (best === null || effect > best[2])) best = [layer, head, effect];
    }
  }
  return best;
}

/** What the tokens before t are worth to it: {influence, sensitivity}. Null where it is not known (yet). */
function decided(t) {
  const { influence, sensitivity } = state.view;
  return influence?.[t] ? { influence: influence[t], sensitivity: sensitivity[t] } : fetched.get(JSON.stringify(["influence", place(t)])) ?? null;
}

// What the colour of a token can show: its number, null for none. `unit` is said in the legend.
const COLOURS = {
  lost: { label: "lost", unit: "nats lost beyond what could not be known", there: isKnown, of: lost },
  loss: { label: "loss", unit: "nats", there: () => true, of: (token) => token.loss },
  looked: {
    label: "where it looked", unit: "% of the chosen head's attention", there: () => weights(state.layer, state.head, state.t - 1) !== null, full: 100, blue: true,
    of: (token, s) => (s < state.t ? weights(state.layer, state.head, state.t - 1)[s] / 2.55 : null),
  },
  decided: {
    label: "what decided it", unit: "how far the chosen token's loss moves with it", there: () => decided(state.t) !== null, full: 1, blue: true,
    of: (token, s) => (s < state.t ? decided(state.t).sensitivity[s] : null),
  },
  heads: {
    label: "without heads", unit: "nats more (or less) without the heads that are off", there: () => state.ablated !== null,
    of: (token, t) => (token.loss === null ? null : state.ablated[t] - token.loss),
  },
  then: { label: "then", unit: "nats of loss at that checkpoint", there: () => state.then !== null, of: (token, t) => state.then.losses[t] },
  other: {
    label: "other run", unit: "nats more (or less) in the other run", there: () => state.other !== null && sameTokens(state.other),
    of: (token, t) => (token.loss === null ? null : state.other.tokens[t].loss - token.loss),
  },
};

const sameTokens = (view) => view.tokens.length === state.view.tokens.length && view.tokens.every((token, t) => token.piece === state.view.tokens[t].piece);

function colour() {
  const wanted = COLOURS[state.colour];
  return wanted?.there() ? wanted : isKnown() ? COLOURS.lost : COLOURS.loss;
}

// ----------------------------------------------------------------------------------------------------------------------- the text

/** Build the text's tokens: once for a view. */
function buildText() {
  const words = [];
  let word = null, length = 0;                                   // a line breaks between words, and in words that are very long
  state.view.tokens.forEach((token, t) => {
    const odd = !token.text || visible(token.text) !== token.text;
    const piece = make("span", { className: "piece", textContent: visible(token.text || token.piece) });
    piece.style.setProperty("--known-nats", Math.min(3, token.known || 0).toFixed(2));
    const node = make("span", { className: odd ? "token odd" : "token", id: `token-${t}` }, piece, make("small"));
    node.setAttribute("role", "option");
    node.dataset.t = t;
    length += token.text.length || 1;
    if (word === null || /^\s/.test(token.text) || length > 20) {
      words.push(word = make("span", { className: "word" }));
      word.setAttribute("role", "none");
      length = token.text.length;
    }
    word.append(node);
    if (/\n/.test(token.text)) { words.push(make("br")); word = null; }
  });
  const next = make("span", { className: "token odd", id: `token-${state.view.tokens.length}` },
    make("span", { className: "piece", textContent: "next ?" }), make("small"));
  next.setAttribute("role", "option");
  next.dataset.t = state.view.tokens.length;
  const lines = draw("svg", { id: "lines", "aria-hidden": "true" });
  $("text").replaceChildren(...words, next, lines);
}

function paintText() {
  const { of, unit, full = FULL, blue } = colour();
  const digits = full === 100 ? 0 : 1;
  state.view.tokens.forEach((token, t) => {
    const node = $(`token-${t}`), value = of(token, t);
    shade(node.firstChild, value ?? 0, full, blue);
    const worth = value !== null && Math.abs(value) >= (digits ? 0.05 : 0.5);
    node.lastChild.textContent = worth ? minus(value.toFixed(digits)) : "";
    node.setAttribute("aria-label", `${t}: ${visible(token.piece)}, ${value === null ? "no number" : `${minus(value.toFixed(2))} ${unit}`}`);
  });
  $(`token-${state.view.tokens.length}`).setAttribute("aria-label", "what comes next");
  const chips = full === 100 ? [5, 25, 50, 100] : full === 1 ? [0, 0.25, 0.5, 1] : state.view.tokens.some((token, t) => (of(token, t) ?? 0) <= -0.3) ? [-2, -1, 0, 1, 2, 4] : [0, 0.5, 1, 2, 4];
  const known = isKnown() ? [make("span", { className: "chip known", textContent: "bar" }), " could not be known (thicker: more)"] : [];
  $("legend").replaceChildren(...chips.map((value) => shade(make("span", { className: "chip", textContent: minus(String(value)) }), value, full, blue)), unit, ...known);
  paintColours();
}

function paintColours() {
  const there = Object.entries(COLOURS).filter(([, mode]) => mode.there());
  const now = colour();
  const had = document.activeElement?.name === "colour";
  $("colours").replaceChildren("colour:", ...there.map(([key, mode]) => {
    const input = make("input", { type: "radio", name: "colour", value: key, checked: mode === now });
    input.onchange = () => { state.colour = key; paintText(); };
    return make("label", {}, input, mode.label);
  }));
  if (had) $("colours").querySelector(":checked").focus();
}

function paintChosen() {
  for (const node of $("text").querySelectorAll(".chosen, .stand")) {
    node.classList.remove("chosen", "stand");
    node.removeAttribute("aria-selected");
  }
  const node = $(`token-${state.t}`);
  node.classList.add("chosen");
  node.setAttribute("aria-selected", "true");
  $(`token-${state.t - 1}`).classList.add("stand");
  $("text").setAttribute("aria-activedescendant", node.id);
  const box = $("scroll"), top = node.offsetTop, bottom = top + node.offsetHeight;
  if (top < box.scrollTop + 20) box.scrollTop = Math.max(0, top - 40);
  else if (bottom > box.scrollTop + box.clientHeight - 10) box.scrollTop = bottom - box.clientHeight + 40;
}

/** Lines from where the model stood to what the chosen head looked at most. */
function paintLines(t = state.t) {
  const svg = $("lines"), origin = $(`token-${t - 1}`);
  svg.replaceChildren();
  svg.setAttribute("width", 1);
  svg.setAttribute("height", 1);
  const middle = (node) => [node.offsetLeft + node.offsetWidth / 2, node.offsetTop + 2];
  const [x, y] = middle(origin);
  for (const [s, weight] of strongest(state.layer, state.head, t - 1, LINES).reverse()) {
    const [x2, y2] = middle($(`token-${s}`));
    const lift = Math.min(y, y2) - 10 - Math.min(16, Math.abs(x - x2) / 20);
    const d = s === t - 1 ? `M${x - 5} ${y} C${x - 12} ${y - 18} ${x + 12} ${y - 18} ${x + 5} ${y}` : `M${x} ${y} Q${(x + x2) / 2} ${lift} ${x2} ${y2}`;
    svg.append(draw("path", { d, "stroke-width": (1 + 5 * weight).toFixed(1), "stroke-opacity": (0.35 + 0.65 * weight).toFixed(2) }));
    const label = draw("text", { x: x2, y: s === t - 1 ? y2 - 14 : y2 - 1 });
    label.textContent = `${Math.round(100 * weight)}%`;
    svg.append(label);
  }
}

function paintWorst() {
  const ranked = state.view.tokens.map((token, t) => [t, lost(token)]).filter(([, value]) => value !== null && value >= MISTAKE)
    .sort((a, b) => b[1] - a[1]).slice(0, 6);
  const what = isKnown() ? "It lost most, beyond what could not be known, at" : "It lost most at";
  $("worst").replaceChildren(make("p", { textContent: ranked.length ? `${what}:` : `No token cost ${MISTAKE} nats more than it had to.` }),
    ...ranked.map(([t, value]) => {
      const button = shade(make("button", { type: "button" }, quote(name(t)), ` ${nats(value)}`), value);
      button.onclick = () => choose(t);
      return button;
    }));
}

// --------------------------------------------------------------------------------------------------------------- the chosen token

/** In words: was it wrong, could it have known, what did it look at. */
function verdict(t) {
  const { view } = state, token = view.tokens[t], expected = view.expected[t - 1], said = [];
  const best = expected[0];
  if (!token) {
    said.push(make("p", { className: "head" }, "After this text it expects ", quote(best[1]), `, ${percent(best[2])}.`));
  } else {
    const p = Math.exp(-token.loss), excess = token.known === null ? null : token.loss - token.known;
    const guess = best[0] === token.id ? ["It expected ", quote(token.piece), ` with ${percent(p)}, more than any other.`]
      : ["It gave ", quote(token.piece), ` ${percent(p)}, and expected `, quote(best[1]), ` with ${percent(best[2])}.`];
    const [head, why] = judge(token, excess, best[0] === token.id);
    said.push(make("p", { className: "head", textContent: head }), make("p", {}, ...guess, ` ${why}`));
  }
  const matters = headThatMatters(t);
  if (matters) {
    const [layer, head, effect] = matters, [seen] = strongest(layer, head, t - 1, 1);
    const show = make("button", { type: "button", textContent: "show it" });
    show.onclick = () => { pickHead(layer, head); $("looked").scrollIntoView({ behavior: "smooth" }); };
    said.push(make("p", {}, `The head that mattered most is ${headName(layer, head)}: without it the loss changes by ${change(effect)}. `,
      ...(seen ? ["It looked most at ", quote(name(seen[0])), ` (${percent(seen[1])}, ${back(t, seen[0])}). `] : []), show));
  } else if (strongest(state.layer, state.head, t - 1, 1).length) {
    const [s, weight] = strongest(state.layer, state.head, t - 1, 1)[0];
    said.push(make("p", {}, `${headName(state.layer, state.head)} looked most at `.replace("l", "L"), quote(name(s)), ` (${percent(weight)}, ${back(t, s)}).`));
  }
  return said;
}

const back = (t, s) => (t - s === 1 ? "the token just before" : `${plural(t - s, "token")} before`);

/** [verdict, reason] on a token that came. */
function judge(token, excess, first) {
  const open = (known) => (known < 0.005 ? "What stands before decides it" : `What stands before leaves ${nats(known)} nats open`);
  if (token.clash) return ["It could not have known: the texts that it learned never go on so.", `The grammar rules this token out; it cost ${nats(token.loss)} nats.`];
  if (excess === null) {
    return [token.loss >= 1 ? `This cost ${nats(token.loss)} nats.` : `Well expected: ${nats(token.loss)} nats.`, isKnown() ? "The grammar cannot read the text up to here, so what could be known is not known."
      : "What could be known is not known for this text."];
  }
  if (excess >= MISTAKE) {
    return [`${token.known < 0.005 ? "Wrong, and it could have known" : "Worse than it had to be"}: ${nats(excess)} nats lost.`,
      `${open(token.known)}; it cost ${nats(token.loss)}.`];
  }
  if (excess <= -MISTAKE) {
    return ["Lucky: it expected this more than there was reason to.", `${open(token.known)}; it cost ${nats(token.loss)}. Other tokens pay for that.`];
  }
  if (token.known >= MISTAKE) {
    return [`${first ? "As good as it can be" : "No mistake"}: nobody could have known.`, `${open(token.known)}; it cost ${nats(token.loss)}.`];
  }
  return ["It knew.", `${open(token.known)}; it cost ${nats(token.loss)}.`];
}

/** Facts of a token as pairs of a list: <dt>, <dd>. */
function facts(t) {
  const token = state.view.tokens[t];
  if (!token) return [];
  const rows = [["token", `number ${t}, id ${token.id}`], ["bytes", token.bytes || "–"], ["loss", `${nats(token.loss)} nats`]];
  if (isKnown()) rows.push(["not knowable", `${nats(token.known)} nats`], ["lost", `${nats(lost(token))} nats`]);
  if (token.clash) rows.push(["grammar", "rules this token out"]);
  const out = rows.flatMap(([term, text]) => [make("dt", { textContent: term }), make("dd", { textContent: text })]);
  if (token.options?.length) out.push(make("dt", { textContent: "the grammar allows" }), make("dd", {}, ...listed(token.options, 12)));
  return out;
}

function listed(pieces, most) {
  const shown = pieces.slice(0, most).flatMap((piece) => [quote(piece), " "]);
  return pieces.length > most ? [...shown, `and ${pieces.length - most} more`] : shown;
}

function paintVerdict() {
  const { t } = state;
  $("chosen-title").replaceChildren(...(state.view.tokens[t] ? ["Token ", String(t), ": ", quote(name(t))] : ["What comes next"]));
  $("verdict").replaceChildren(...verdict(t));
  $("token-facts").replaceChildren(...facts(t));
}

function peek(t, node) {
  const box = $("peek");
  box.hidden = t === null || !state.view.tokens[t];
  if (box.hidden) return;
  const list = make("dl");
  list.append(...facts(t));
  box.replaceChildren(quote(name(t)), list);
  const at = node.getBoundingClientRect(), size = box.getBoundingClientRect();
  const below = at.bottom + 8 + size.height < innerHeight;
  box.style.left = `${Math.max(4, Math.min(at.left, innerWidth - size.width - 4))}px`;
  box.style.top = `${Math.max(4, below ? at.bottom + 8 : at.top - size.height - 8)}px`;
}

// --------------------------------------------------------------------------------------------------------------- what it expected

/** The probabilities after temperature, top-k and top-p, in the order of minillama/generate.py.
 *
 * Of all V probabilities p only the ten likeliest are here, and ln Σ p^(1/temperature) over all of them, which makes these exact.
 * Returns {of: p -> probability, kept: how many stay, exact: false where more than ten stay}. */
function sampled(position, temperature, topK, topP) {
  const ps = state.view.expected[position].map((entry) => entry[2]);
  if (temperature === 0) return { of: (p, rank) => (rank === 0 ? 1 : 0), kept: 1, exact: true };
  const { grid, log_sum: sums } = state.view.temperature ?? { grid: [1], log_sum: null };
  const nearest = grid.reduce((best, tau, i) => (Math.abs(tau - temperature) < Math.abs(grid[best] - temperature) ? i : best), 0);
  let total = sums ? Math.exp(sums[position][nearest]) : 1;
  const scaled = (p) => p ** (1 / temperature);
  if (topK) total = ps.slice(0, topK).reduce((sum, p) => sum + scaled(p), 0);
  let kept = topK || Infinity, exact = true;
  if (topP < 1) {
    let mass = 0, n = 0;
    while (n < Math.min(kept, ps.length) && mass < topP) mass += scaled(ps[n++]) / total;
    exact = mass >= topP || n === kept;
    kept = exact ? n : Infinity;
    total *= exact ? mass : topP;
  }
  return { of: (p, rank) => (rank < kept ? scaled(p) / total : 0), kept, exact };
}

function paintExpected() {
  const { view, t } = state, position = t - 1, token = view.tokens[t];
  const [temperature, topK, topP] = ["temperature", "top-k", "top-p"].map((id) => Number($(id).value));
  $("temperature-value").textContent = temperature === 0 ? "0: the likeliest" : temperature.toFixed(1);
  $("top-k-value").textContent = topK === 0 ? "off" : topK;
  $("top-p-value").textContent = topP === 1 ? "off" : topP.toFixed(2);
  $("temperature").disabled = !view.temperature;
  const changed = temperature !== 1 || topK !== 0 || topP !== 1;
  const now = sampled(position, temperature, topK, topP);
  const entries = view.expected[position].map((entry, rank) => [...entry.slice(0, 3), entry[3] ?? null, rank]);
  const grammar = entries.some((entry) => entry[3] !== null);
  if (token && token.loss !== null && !entries.some((entry) => entry[0] === token.id)) {
    entries.push([token.id, token.piece, Math.exp(-token.loss), token.known === null ? null : Math.exp(-token.known), entries.length]);
  }
  const rows = entries.map(([id, piece, p, allowed, rank]) => {
    const q = now.of(p, rank), came = token && id === token.id;
    const bar = make("div", { className: "bar" }), thin = make("div", { className: "bar thin" });
    bar.style.setProperty("--v", q.toFixed(4));
    thin.style.setProperty("--v", (allowed ?? 0).toFixed(4));
    const row = make("tr", { className: `${came ? "came" : ""} ${changed && q === 0 ? "cut" : ""}` },
      make("th", { scope: "row" }, quote(piece), came ? " came" : ""),
      make("td", { className: "track" }, bar, ...(grammar ? [thin] : [])),
      make("td", { className: "number", textContent: percent(q) }));
    if (changed) row.append(make("td", { className: "number", textContent: percent(p) }));
    if (grammar) row.append(make("td", { className: "number", textContent: allowed === 0 ? "never" : percent(allowed) }));
    return row;
  });
  const heads = [["token"], [""], [changed ? "with settings" : "model"], ...(changed ? [["model"]] : []), ...(grammar ? [["perfect reader"]] : [])];
  $("bars").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map(([text], i) => make("th", { className: i > 1 ? "number" : "", textContent: text })))),
    make("tbody", {}, ...rows)));
  const rest = 1 - view.expected[position].reduce((sum, entry) => sum + entry[2], 0);
  const notes = [`All other tokens together: ${percent(Math.max(0, rest))}.`];
  if (view.entropy?.[position] !== undefined) notes.push(`The model's own uncertainty here: ${nats(view.entropy[position])} nats.`);
  if (!now.exact) notes.push("More than ten tokens stay, so these are close, not exact.");
  if (!view.temperature) notes.push("The temperature needs all probabilities, which this file does not hold.");
  if (grammar) notes.push("Thin bar: what a perfect reader would give it, who knows the grammar and forgets nothing.");
  $("bars-note").textContent = notes.join(" ");
}

// ---------------------------------------------------------------------------------------------------------------- where it looked

function css(variable) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(variable).trim().slice(1);
  return [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** A head's T x T weights as a picture of at most `side` pixels: the largest weight of the cells in a pixel. */
function picture(layer, head, side) {
  const T = state.view.tokens.length, n = Math.min(T, side), base = cell(layer, head) * T * T;
  const [none, all, future] = [css("--card"), css("--accent"), css("--off")];
  const strength = new Uint8Array(n * n);
  for (let t = 0; t < T; t++) {
    const row = Math.floor(t * n / T) * n;
    for (let s = 0; s <= t; s++) {
      const i = row + Math.floor(s * n / T), byte = maps[base + t * T + s];
      if (byte > strength[i]) strength[i] = byte;
    }
  }
  const image = new ImageData(n, n);
  for (let i = 0; i < n * n; i++) {
    const v = Math.sqrt(strength[i] / 255), later = i % n > Math.floor(i / n);  // the root, so that small weights can be seen
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = later ? future[c] : none[c] + v * (all[c] - none[c]);
    image.data[4 * i + 3] = 255;
  }
  const canvas = make("canvas", { width: n, height: n });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function paintOn(canvas, source) {
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = source.width > canvas.width;
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
}

/** The small maps: once for a view, and again in another theme. */
function buildHeads() {
  const { n_layers: L, n_heads: H } = state.view.model;
  $("heads").style.gridTemplateColumns = `repeat(${H}, minmax(${H > 8 ? "3.4rem" : "0"}, 7rem))`;
  $("heads").replaceChildren();
  for (let layer = 0; layer < L; layer++) {
    for (let head = 0; head < H; head++) {
      const button = make("button", { type: "button", className: "head-cell", id: `head-${layer}-${head}` });
      button.setAttribute("role", "radio");
      if (maps) {
        const canvas = make("canvas", { width: 96, height: 96 });
        paintOn(canvas, picture(layer, head, 96));
        button.append(canvas);
      }
      button.append(make("span", { textContent: `${layer}.${head}` }), make("span"));
      button.onclick = () => { $("follow").checked = false; pickHead(layer, head); };
      $("heads").append(button);
    }
  }
}

function paintHeads() {
  const { n_layers: L, n_heads: H } = state.view.model;
  for (let layer = 0; layer < L; layer++) {
    for (let head = 0; head < H; head++) {
      const button = $(`head-${layer}-${head}`), chosen = layer === state.layer && head === state.head, effect = ablation(layer, head, state.t);
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
      button.classList.toggle("off", isOff(layer, head));
      button.lastChild.textContent = effect === null ? "" : change(effect);
      shade(button.lastChild, effect ?? 0, 2);
      button.setAttribute("aria-label", `${headName(layer, head)}${isOff(layer, head) ? ", off" : ""}${effect === null ? "" : `, without it the loss of the chosen token changes by ${change(effect)} nats`}`);
    }
  }
  const off = isOff(state.layer, state.head);
  $("head-title").textContent = `${headName(state.layer, state.head)}${off ? ", off" : ""}`.replace("l", "L");
  $("switch").textContent = off ? "Switch this head on" : "Switch this head off";
  $("switch").setAttribute("aria-pressed", off);
  $("all-on").disabled = state.off.length === 0;
  const shown = state.view.ablation ? "Number: the change of the chosen token's loss if that head alone is off." : "";
  const many = maps ? "Rows: where the model stood; columns: what it looked at; dark: much (the root of the weight)." : state.view.live
    ? "The text is too long for maps of all heads: only the row of the chosen token is asked for." : "The text is too long for the maps to be in this file.";
  $("maps-note").textContent = `Each map is a head, layer.head. ${many} ${shown}`;
}

function paintMap() {
  const canvas = $("map"), { tokens } = state.view, T = tokens.length;
  canvas.hidden = !maps;
  if (maps) {
    const side = Math.max(240, Math.round(canvas.clientWidth * devicePixelRatio)) || 448;
    canvas.width = canvas.height = side;
    paintOn(canvas, picture(state.layer, state.head, side));
    const context = canvas.getContext("2d"), step = side / T, y = (state.t - 1) * step;
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    context.lineWidth = Math.max(1.5, devicePixelRatio);
    context.strokeRect(1, y, state.t * step, Math.max(step, 3));
    canvas.setAttribute("aria-label", `Attention of ${headName(state.layer, state.head)}. Arrow keys move the chosen token.`);
  }
  const position = state.t - 1, seen = strongest(state.layer, state.head, position, 8);
  const rest = 1 - seen.reduce((sum, [, w]) => sum + w, 0);
  $("cell").replaceChildren("To guess ", quote(name(state.t)), " it stood at ", quote(name(position)), " and looked at:");
  $("attended").replaceChildren(make("table", {}, make("tbody", {}, ...seen.map(([s, w]) => {
    const bar = make("div", { className: "bar" });
    bar.style.setProperty("--v", w.toFixed(3));
    return make("tr", {}, make("th", { scope: "row" }, quote(name(s))), make("td", { className: "number", textContent: s }),
      make("td", { className: "track" }, bar), make("td", { className: "number", textContent: percent(w) }));
  }))), make("p", { className: "small", textContent: seen.length ? `All others: ${percent(Math.max(0, rest))}.` : "Not computed here." }));
}

/** What the mouse points at in the large map. */
function cellAt(event) {
  const box = $("map").getBoundingClientRect(), T = state.view.tokens.length;
  const [s, q] = [event.clientX - box.left, event.clientY - box.top].map((x) => Math.max(0, Math.min(T - 1, Math.floor(x / box.width * T))));
  return [q, s];
}

function pickHead(layer, head) {
  Object.assign(state, { layer, head });
  paintHeads();
  paintMap();
  paintLines();
  paintText();
}

async function switchHead(layer, head) {
  const key = `${layer}.${head}`;
  const next = state.off.includes(key) ? state.off.filter((other) => other !== key) : [...state.off, key];
  await setOff(state.view.live || next.length < 2 ? next : [key]);  // a file holds what happens without one head, not without several
}

async function setOff(off) {
  const { view } = state;
  let ablated = null;
  if (off.length === 1 && view.ablation) {
    const [layer, head] = off[0].split(".").map(Number);
    ablated = view.tokens.map((token, t) => (token.loss === null ? null : token.loss + ablation(layer, head, t)));
  } else if (off.length) {
    if (!view.live) return;
    const said = await ask("view", { text: view.text, checkpoint: view.checkpoint, off: off.map((key) => key.split(".").map(Number)) });
    if (!said || view !== state.view) return;
    ablated = said.tokens.map((token) => token.loss);
  }
  Object.assign(state, { off, ablated, colour: ablated ? "heads" : state.colour === "heads" ? null : state.colour });
  paintHeads();
  paintMap();
  paintText();
  paintAblated();
}

function mean(losses) {
  const there = losses.filter((loss) => loss !== null);
  return there.length ? there.reduce((sum, loss) => sum + loss, 0) / there.length : null;
}

function paintAblated() {
  const { view, ablated, t } = state;
  if (!ablated) {
    $("ablated").textContent = view.live || !view.ablation ? "" : "This file knows what each head does alone. Several at once: open the run with look.";
    return;
  }
  const before = mean(view.tokens.map((token) => token.loss)), after = mean(ablated);
  const here = view.tokens[t] && view.tokens[t].loss !== null ? [" This token: ", nats(view.tokens[t].loss), " → ", nats(ablated[t]), ` (${change(ablated[t] - view.tokens[t].loss)}).`] : [];
  $("ablated").replaceChildren(`Without ${state.off.map((key) => headName(...key.split("."))).join("; ")}: the text's loss ${nats(before)} → ${nats(after)} (${change(after - before)}).`, ...here);
}

// ----------------------------------------------------------------------------------------------------------- how the answer formed

function paintLens() {
  const { view, t } = state, { lens } = view, position = t - 1, first = Math.max(0, position - 3);
  if (!lens) { $("lens").replaceChildren(); return; }
  const columns = Array.from({ length: position - first + 1 }, (_, i) => first + i);
  const head = make("tr", {}, make("th", { textContent: "having read" }), ...columns.map((p) => make("th", { scope: "col" }, quote(name(p)))),
    ...(view.tokens[t] ? [make("th", { className: "number", scope: "col" }, "p of ", quote(name(t)))] : []));
  const rows = lens.top.map((row, layer) => {
    const cells = columns.map((p) => {
      const [piece, probability] = row[p];
      const td = make("td", { className: p === position ? "blue now" : "blue" }, quote(piece), ` ${percent(probability)}`);
      td.style.setProperty("--v", probability.toFixed(3));
      return td;
    });
    const target = lens.target_p?.[layer]?.[position];
    return make("tr", {}, make("th", { scope: "row", textContent: layer === 0 ? "embedding" : `after layer ${layer - 1}` }), ...cells,
      ...(view.tokens[t] ? [make("td", { className: "number", textContent: percent(target) })] : []));
  });
  const came = make("tr", {}, make("th", { scope: "row", textContent: "came" }), ...columns.map((p) => make("td", {}, quote(name(p + 1)))));
  $("lens").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows, came));
}

/** Bars about a middle line, plus to the right: [[label nodes, value], ...]. What costs is orange, what gains blue. */
function signedBars(rows, plus) {
  const largest = Math.max(1e-9, ...rows.map(([, value]) => Math.abs(value)));
  return make("table", {}, make("tbody", {}, ...rows.map(([label, value]) => {
    const bar = make("div", { className: `bar ${value < 0 ? "minus" : ""} ${(value < 0) === (plus === "costs") ? "gain" : "cost"}` });
    bar.style.setProperty("--v", (Math.abs(value) / largest).toFixed(4));
    return make("tr", {}, make("th", { scope: "row" }, ...label), make("td", { className: "track" }, make("div", { className: "signed" }, bar)),
      make("td", { className: "number", textContent: change(value) }));
  })));
}

function paintContributions() {
  const { contributions: parts, tokens } = state.view, row = parts?.target[state.t - 1];
  if (!row || !tokens[state.t]) {
    $("contributions").replaceChildren(make("p", { className: "small", textContent: "Choose a token that came." }));
    return;
  }
  const sum = row.reduce((total, value) => total + value, 0);
  $("contributions").replaceChildren(signedBars(row.map((value, i) => [[parts.names[i].replace(/^\d/, "layer $&")], value]), "gains"), make("p", { className: "small" },
    `Together ${nats(sum)}: the logit of `, quote(name(state.t)), ` is ${nats(parts.logit[state.t - 1])}. A logit counts only beside those of the other tokens.`));
}

// --------------------------------------------------------------------------------------------------------------- what decided it

function paintInfluence() {
  const { view, t } = state, worth = decided(t);
  if (!view.tokens[t] || !worth) {
    const why = !view.tokens[t] ? "Choose a token that came: it needs a loss." : view.live ? "computing …" : "Not computed in this file: open the run with look.";
    $("influence").replaceChildren(make("p", { className: "small", textContent: why }));
    return;
  }
  const ranked = Array.from({ length: t }, (_, s) => [s, worth.sensitivity[s], worth.influence[s]]).sort((a, b) => b[1] - a[1]).slice(0, 8);
  const largest = Math.max(1e-9, ranked[0][1]);
  $("influence").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, ...["token", "", "moves it", "for or against"].map((text, i) => make("th", { className: i > 1 ? "number" : "", textContent: text })))),
    make("tbody", {}, ...ranked.map(([s, size, signed]) => {
      const bar = make("div", { className: "bar" });
      bar.style.setProperty("--v", (size / largest).toFixed(4));
      return make("tr", {}, make("th", { scope: "row" }, quote(name(s)), ` ${s}`), make("td", { className: "track" }, bar),
        make("td", { className: "number", textContent: nats(size) }), make("td", { className: "number", textContent: change(signed) }));
    }))));
}

function paintReplace() {
  const { view, t } = state, values = decided(t)?.sensitivity, chosen = $("victim").dataset.of === `${t}` ? $("victim").value : null;
  const strongestOne = values ? values.slice(0, t).reduce((best, value, s) => (s > 0 && value > values[best] ? s : best), t - 1) : t - 1;
  const first = Math.max(1, t - 400);
  $("victim").replaceChildren(...Array.from({ length: Math.max(0, t - first) }, (_, i) => t - 1 - i).map((s) =>
    make("option", { value: s, textContent: `${s}: ${visible(name(s))}` })));
  $("victim").dataset.of = t;
  if (t > 1) $("victim").value = chosen ?? Math.max(1, strongestOne);
  paintPieces();
  enable($("replace"), view.live && t > 1 && view.tokens[t], view.live ? "Choose a token that has one before it." : undefined);
  $("replaced").textContent = "";
}

function paintPieces() {
  const expected = state.view.expected[Number($("victim").value) - 1] ?? [];
  $("pieces").replaceChildren(...expected.map((entry) => make("option", { value: visible(entry[1]) })));
}

async function replaceToken() {
  const { view, t } = state, position = Number($("victim").value), typed = $("substitute").value.replace(/ /g, "▁");
  const id = idOf(typed, position);
  if (id === null) { $("replaced").textContent = `The vocabulary has no piece ${visible(typed)}: choose one of the list.`; return; }
  const said = await ask("replace", { text: view.text, checkpoint: view.checkpoint, position, id });
  if (!said || view !== state.view) return;
  const [old, now] = [view.tokens[t].loss, said.losses[t]];
  $("replaced").replaceChildren("With ", quote(typed), " in place of ", quote(name(position)), ", the loss of ", quote(name(t)),
    ` goes from ${nats(old)} to ${nats(now)} (${change(now - old)}).`);
}

function idOf(piece, position) {
  const offered = state.view.expected[position - 1]?.find((entry) => entry[1] === piece || visible(entry[1]) === piece);
  if (offered) return offered[0];
  const index = state.view.vocabulary?.indexOf(piece) ?? -1;
  return index >= 0 ? index : null;
}

// -------------------------------------------------------------------------------------------------------------- how it came to be

const checkpoints = () => state.view.history?.checkpoints ?? (state.view.live ? state.view.checkpoints ?? [] : []);
const lossesAt = (i) => state.view.history?.loss[i] ?? fetched.get(`then ${checkpoints()[i]}`) ?? null;

function buildHistory() {
  const names = checkpoints(), box = $("history");
  if (names.length < 2) {
    box.replaceChildren(make("p", { className: "small", textContent: state.view.live ? "This run keeps one checkpoint: train keeps more with --keep."
      : "This file holds one checkpoint." }));
    return;
  }
  const slider = make("input", { type: "range", id: "checkpoint", min: 0, max: names.length - 1, step: 1, value: names.length - 1, ariaLabel: "checkpoint" });
  slider.oninput = () => goTo(Number(slider.value));
  const open = make("button", { type: "button", id: "open-checkpoint", textContent: "Show this checkpoint in all panels", disabled: !state.view.live });
  open.onclick = () => look(state.view.text, names[Number(slider.value)]);
  box.replaceChildren(make("label", {}, "checkpoint ", make("output", { id: "checkpoint-name", textContent: names.at(-1) }), slider),
    draw("svg", { id: "curve", viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img" }), make("p", { id: "then", className: "small" }),
    ...(state.view.live ? [open] : []));
}

async function goTo(i) {
  const { view } = state, names = checkpoints();
  $("checkpoint-name").textContent = names[i];
  if (!lossesAt(i)) {
    await new Promise((resume) => setTimeout(resume, 150));       // while the slider moves, nothing is asked
    if (names[Number($("checkpoint").value)] !== names[i] || view !== state.view) return;
    const said = await ask("view", { text: view.text, checkpoint: names[i], off: [] });
    if (!said || view !== state.view) return;
    fetched.set(`then ${names[i]}`, said.tokens.map((token) => token.loss));
  }
  state.then = { name: names[i], losses: lossesAt(i) };
  state.colour = "then";
  paintText();
  paintHistory();
}

function paintHistory() {
  const svg = $("curve"), { view, t, then } = state, token = view.tokens[t];
  if (!svg) return;
  const losses = checkpoints().map((_, i) => lossesAt(i)?.[t] ?? null), n = losses.length, top = Math.max(1, ...losses);
  const at = (i, loss) => `${(i / (n - 1)) * 300} ${98 - 94 * loss / top}`;
  const points = losses.map((loss, i) => (loss === null ? null : at(i, loss))).filter((point) => point !== null);
  svg.replaceChildren();
  if (token && points.length) svg.append(draw("path", { d: `M${points.join(" L")}` }));
  if (token && token.known !== null) svg.append(draw("path", { class: "floor", d: `M${at(0, token.known)} L${at(n - 1, token.known)}` }));
  const now = Number($("checkpoint").value);
  svg.append(draw("path", { class: "mark", d: `M${(now / (n - 1)) * 300} 0 V100` }));
  const range = token && token.loss !== null ? `Line: the loss of this token, 0 to ${nats(top)} nats${token.known === null ? "" : "; dashed: what could not be known"}. ` : "";
  svg.setAttribute("aria-label", range);
  $("then").replaceChildren(range, ...(then ? [`At ${then.name}: `, ...(token && then.losses[t] !== null ? ["this token ", nats(then.losses[t]), ", "] : []),
    `the text ${nats(mean(then.losses))} nats/token (now ${nats(view.mean.loss)}). The colours above show it.`] : ["Move the slider: the colours of the text follow."]));
}

async function compareRuns() {
  const { view } = state, other = await ask("compare", { run: $("other").value, text: view.text });
  if (!other || view !== state.view) return;
  state.other = other;
  const lines = [`${visible(view.run)}: ${nats(view.mean.loss)} nats/token; ${visible(other.run)}, ${visible(other.checkpoint ?? "")}: ${nats(other.mean.loss)}.`];
  if (sameTokens(other)) {
    state.colour = "other";
    const ranked = view.tokens.map((token, t) => [t, token.loss === null ? 0 : other.tokens[t].loss - token.loss]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 6);
    $("compared").replaceChildren(make("p", { textContent: lines[0] }), make("p", { className: "small", textContent: "The tokens that cost most differently in the other run:" }),
      signedBars(ranked.map(([t, value]) => [[quote(name(t)), ` ${t}`], value]), "costs"));
  } else {
    const total = (of) => of.tokens.reduce((sum, token) => sum + (token.loss ?? 0), 0);
    $("compared").replaceChildren(make("p", { textContent: `${lines[0]} The runs cut the text differently, so only its sum can be compared: ${nats(total(view))} and ${nats(total(other))} nats.` }));
  }
  paintText();
}

// ------------------------------------------------------------------------------------------------------------------- the whole page

/** Disable what a form holds, and say why. */
function enable(form, on, why = "This needs the run itself: python -m minillama look RUN.") {
  for (const control of form.elements) control.disabled = !on;
  let note = form.querySelector(".why");
  if (!note) form.append(note = make("p", { className: "small why" }));
  note.textContent = on ? "" : why;
}

async function look(text, checkpoint = state.view.checkpoint) {
  const limit = 1 << 20, size = new TextEncoder().encode(text).length;
  if (size > limit) { $("error").hidden = false; $("error").textContent = `The text must have at most ${limit} bytes, got ${size}.`; return; }
  const view = await ask("view", { text, checkpoint, off: [] });
  if (view) show({ ...view, live: true });
}

function show(view) {
  Object.assign(state, { view, off: [], ablated: null, then: null, other: null, colour: null });
  fetched.clear();
  maps = view.attention ? unpack(view.attention) : null;
  const { model, tokens } = view, long = model.n_layers <= state.layer || model.n_heads <= state.head;
  if (long) Object.assign(state, { layer: 0, head: 0 });
  document.title = `look: ${visible(view.run ?? "")}`;
  $("run").textContent = `look: ${visible(view.run ?? "")}`;
  const known = view.mean.known !== null ? `, of which ${nats(view.mean.known)} could not be known: ${nats(view.mean.loss - view.mean.known)} lost`
    : isKnown() ? ", and the grammar cannot read all of it" : "; what could be known of it is not known";
  $("facts").textContent = `${visible(view.checkpoint ?? "")} · ${model.parameters.toLocaleString("en")} parameters, ${plural(model.n_layers, "layer")} of ${plural(model.n_heads, "head")} · `
    + `${plural(tokens.length, "token")}${view.source ? ` of ${visible(view.source)}` : ""}, ${nats(view.mean.loss)} nats/token${known}`;
  $("text-means").textContent = isKnown() ? "orange: what the model lost, in nats, beyond what nobody could know (the grey bar)."
    : "orange: the loss in nats, −ln of the probability that the model gave the token.";
  $("text-means-not").textContent = isKnown() ? "that the rest was easy: where a text is free to go on in many ways, a high loss is no mistake."
    : "a mistake: what nobody could know has a high loss, too, and for this text that part is not known.";
  $("typed").value = view.text;
  $("source").replaceChildren(make("option", { value: "", textContent: "any source" }), ...(view.sources ?? []).map((source) => make("option", { value: source, textContent: visible(source) })));
  $("documents").hidden = view.live && !view.sources?.length;
  $("runs").replaceChildren(...(view.runs ?? []).map((run) => make("option", { value: run })));
  $("another").open = view.live;
  enable($("ask"), view.live);
  enable($("compare"), view.live);
  $("compared").replaceChildren();
  buildText();
  buildHeads();
  buildHistory();
  paintWorst();
  paintAblated();
  const worst = tokens.map((token, t) => [t, lost(token)]).filter(([, value]) => value !== null).sort((a, b) => b[1] - a[1])[0];
  choose(worst ? worst[0] : tokens.length);
}

/** Choose a token: everything on the page is about it. */
function choose(t) {
  state.t = Math.max(1, Math.min(state.view.tokens.length, t));
  const matters = $("follow").checked ? headThatMatters(state.t) : null;
  if (matters) Object.assign(state, { layer: matters[0], head: matters[1] });
  paintAll();
  if (state.view.live) askAbout(state.view, state.t);
}

/** Ask the server for what a view leaves out: once the choice stands still. */
async function askAbout(view, t) {
  const chosen = () => view === state.view && t === state.t;
  await new Promise((resume) => setTimeout(resume, 120));
  if (!chosen()) return;
  if (!maps) {
    const said = await once("attention", place(t - 1));
    if (said) said.bytes ??= unpack(said.row);
    if (said && chosen()) paintAll();
  }
  if (view.tokens[t] && !decided(t) && chosen() && await once("influence", place(t)) && chosen()) {
    paintInfluence();
    paintReplace();
    paintText();
  }
}

function paintAll() {
  paintText();
  paintChosen();
  paintLines();
  paintVerdict();
  paintExpected();
  paintHeads();
  paintMap();
  paintAblated();
  paintLens();
  paintContributions();
  paintInfluence();
  paintReplace();
  paintHistory();
}

/** The token in the line above or below that stands nearest. */
function beside(t, direction) {
  const here = $(`token-${t}`), x = here.offsetLeft + here.offsetWidth / 2;
  let best = null, line = null;
  for (let other = t + direction; other >= 1 && other <= state.view.tokens.length; other += direction) {
    const node = $(`token-${other}`);
    if (Math.abs(node.offsetTop - here.offsetTop) < 4) continue;
    line ??= node.offsetTop;
    if (Math.abs(node.offsetTop - line) > 4) break;
    const distance = Math.abs(node.offsetLeft + node.offsetWidth / 2 - x);
    if (best === null || distance < best[1]) best = [other, distance];
  }
  return best ? best[0] : t;
}

function nextMistake(t, direction) {
  for (let other = t + direction; other >= 1 && other < state.view.tokens.length; other += direction) {
    if (lost(state.view.tokens[other]) >= MISTAKE) return other;
  }
  return t;
}

function moveByKey(event) {
  const { t } = state;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const to = {
    ArrowLeft: () => t - 1, ArrowRight: () => t + 1, ArrowUp: () => beside(t, -1), ArrowDown: () => beside(t, 1), Home: () => 1,
    End: () => state.view.tokens.length, n: () => nextMistake(t, 1), p: () => nextMistake(t, -1),
  }[event.key];
  if (!to) return;
  event.preventDefault();
  choose(to());
}

function headByKey(event) {
  const { n_layers: L, n_heads: H } = state.view.model;
  if (event.key === "x") { event.preventDefault(); switchHead(state.layer, state.head); return; }
  const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!move) return;
  event.preventDefault();
  $("follow").checked = false;
  pickHead((state.layer + move[0] + L) % L, (state.head + move[1] + H) % H);
  $(`head-${state.layer}-${state.head}`).focus();
}

const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = THEMES[theme];
  buildHeads();
  paintHeads();
  paintMap();
}

function start() {
  const text = $("text");
  text.classList.add("numbered");
  show(state.view);
  setTheme("auto");
  $("theme").onclick = () => { const names = Object.keys(THEMES); setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % 3]); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(document.documentElement.dataset.theme));
  const tokenOf = (event) => event.target.closest(".token");
  text.onclick = (event) => { if (tokenOf(event)) { peek(null); choose(Number(tokenOf(event).dataset.t)); } };
  text.onkeydown = moveByKey;
  $("map").onkeydown = moveByKey;
  text.onpointerover = (event) => {
    const node = event.pointerType === "touch" ? null : tokenOf(event), t = node ? Number(node.dataset.t) : null;
    peek(t, node);
    paintLines(t || state.t);
  };
  text.onpointerleave = () => { peek(null); paintLines(); };
  $("scroll").onscroll = () => peek(null);
  $("numbers").onchange = () => { text.classList.toggle("numbered", $("numbers").checked); paintLines(); };
  $("heads").onkeydown = headByKey;
  $("switch").onclick = () => switchHead(state.layer, state.head);
  $("all-on").onclick = () => setOff([]);
  $("follow").onchange = () => choose(state.t);
  $("map").onpointermove = (event) => {
    const [q, s] = cellAt(event), row = weights(state.layer, state.head, q);
    $("cell").replaceChildren(...(s > q ? ["It cannot look ahead."] : ["At ", quote(name(q)), ` (${q}) it looked at `, quote(name(s)), ` (${s}): ${percent(row[s] / 255)}.`]));
  };
  $("map").onpointerleave = paintMap;
  $("map").onclick = (event) => choose(cellAt(event)[0] + 1);
  for (const id of ["temperature", "top-k", "top-p"]) $(id).oninput = paintExpected;
  $("ask").onsubmit = (event) => { event.preventDefault(); look($("typed").value); };
  $("typed").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); look($("typed").value); } };
  $("draw").onclick = async () => {
    const said = await ask("document", { source: $("source").value || null, seed: Math.floor(Math.random() * 2 ** 31) });
    if (said) look(said.text);
  };
  $("victim").onchange = paintPieces;
  $("replace").onsubmit = (event) => { event.preventDefault(); replaceToken(); };
  $("compare").onsubmit = (event) => { event.preventDefault(); compareRuns(); };
  new ResizeObserver(() => { paintLines(); paintMap(); }).observe(text);
}

start();
