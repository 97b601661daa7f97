// The review page. Content from rollouts enters the document as text only (textContent), never as HTML; an image is
// shown only where its data stand in the rollout. Long texts are cut, and their rest is made when it is asked for.
"use strict";

const LONG = { user: 6000, assistant: 12000, system: 400, fold: 20000 };
const MORE = 200000; // characters that one press of "more" adds
const REMEMBERED = 12; // rollouts kept, so that going back is instant
const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const characters = (n) => `${number(n)} character${n === 1 ? "" : "s"}`;
const DONE = { accept: "accepted", reject: "rejected" };
const MARK = { accept: "✓", reject: "✗" };

const page = {
  queue: [], // {id, reward, stratum} in order
  place: new Map(), // id → index in the queue
  opinions: new Map(), // id → [{reviewer, judgement, tags, note}]
  reviewer: "",
  waiting: "",
  at: null, // the rollout that is shown, as the API gave it
  from: 0, // index of the queue that next and previous count from
  known: new Map(), // id → promise of a rollout
  asked: 0, // only the latest `go` may draw
  work: Promise.resolve(), // decisions go out one after another, in the order of the keys
  pending: new Map(), // id → {rollout_id, decision, tags, note} on its way to the disk: fields show it meanwhile
  sent: new WeakSet(), // those of them that are under way
  deciding: false,
};

// ---- small parts

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function figure(value) {
  if (Number.isInteger(value)) return number(value);
  return Math.abs(value) >= 0.001 ? String(Number(value.toFixed(4))) : value.toExponential(2);
}

// A cut never splits a surrogate pair.
function cut(text, at) {
  const code = text.charCodeAt(at - 1);
  return at < text.length && code >= 0xd800 && code < 0xdc00 ? at - 1 : at;
}

// Text that shows its first `limit` characters, and more on demand.
function longText(text, limit, style = "") {
  const pre = el("pre", { class: style, dir: "auto" });
  const holder = el("div", {}, pre);
  let shown = text.length <= limit * 1.2 ? text.length : cut(text, limit);
  pre.textContent = text.slice(0, shown);
  if (shown < text.length) {
    const more = el("button", { type: "button", class: "more" });
    const label = () => {
      const rest = text.length - shown;
      more.textContent = rest <= MORE ? `Show the rest: ${characters(rest)}` : `Show ${number(MORE)} of ${number(rest)} more`;
    };
    more.addEventListener("click", () => {
      const next = cut(text, Math.min(text.length, shown + MORE));
      pre.append(text.slice(shown, next));
      shown = next;
      if (shown === text.length) more.remove();
      else label();
    });
    label();
    holder.append(more);
  }
  return holder;
}

// A fold whose inside is made when it is first opened.
function fold(title, peek, size, fill, style = "") {
  const summary = el("summary", {}, el("b", { dir: "auto" }, title));
  summary.append(el("span", { class: "peek", dir: "auto" }, peek), el("span", { class: "size" }, size));
  const details = el("details", { class: `fold ${style}`.trim() }, summary);
  let filled = false;
  details.addEventListener("toggle", () => {
    if (!details.open || filled) return;
    filled = true;
    const inside = el("div", { class: "inside", tabindex: "0", role: "region", "aria-label": title });
    details.append(inside);
    fill(inside);
  });
  return details;
}

const oneLine = (text) => text.slice(0, 400).replace(/\s+/g, " ").trim().slice(0, 200);

// ---- talking with the server

async function ask(path, body) {
  let response;
  try {
    response = await fetch(`api/${path}`, body === undefined ? {} : {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      keepalive: true,
    });
  } catch {
    throw new Error("gristmill review does not answer: is it still running in its terminal? Start it again, and open the address that it prints.");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error || "the address of this page is no longer valid: open the one that gristmill review printed last");
  }
  return response;
}

const json = async (path, body) => (await ask(path, body)).json();

function fails(error) {
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

function fetchRollout(id) {
  if (!page.known.has(id)) {
    const asked = json(`rollouts/${encodeURIComponent(id)}`);
    asked.catch(() => page.known.delete(id));
    page.known.set(id, asked);
    if (page.known.size > REMEMBERED) page.known.delete(page.known.keys().next().value);
  }
  return page.known.get(id);
}

async function refresh() {
  const state = await json("state");
  page.opinions = new Map(Object.entries(state.opinions));
  return state;
}

// ---- what is decided

const of = (id) => page.opinions.get(id) || [];
const mine = (id) => of(id).find((one) => one.reviewer === page.reviewer);
const written = (id) => page.pending.get(id) || mine(id) || { tags: [], note: "" };
const myJudgement = (id) => mine(id)?.judgement || null;

function judged(id) {
  const said = of(id).map((one) => one.judgement).filter(Boolean);
  if (!said.length) return null;
  return said.includes("reject") ? "reject" : "accept";
}

const split = (id) => new Set(of(id).map((one) => one.judgement).filter(Boolean)).size > 1;

function passes(id) {
  const filter = $("filter").value;
  if (filter === "all") return true;
  if (filter === "undecided") return !myJudgement(id);
  if (filter === "split") return split(id);
  return judged(id) === filter;
}

// ---- drawing

function drawBar() {
  const total = page.queue.length;
  const done = page.queue.filter((one) => myJudgement(one.id)).length;
  const anybody = page.queue.filter((one) => judged(one.id)).length;
  const disagreed = page.queue.filter((one) => split(one.id)).length;
  $("done").style.width = `${total ? (100 * done) / total : 0}%`;
  let words = `${number(done)} of ${number(total)} decided`;
  if (anybody > done) words += `, ${number(anybody - done)} by others only`;
  if (disagreed) words += `, ${number(disagreed)} disagreed on`;
  $("count").textContent = words;
  document.title = `${done}/${total} · Gristmill review`;
}

function drawOpinions() {
  const { id } = page.at;
  const said = of(id).filter((one) => one.judgement || one.tags.length || one.note);
  $("opinions").replaceChildren(...said.map((one) => {
    const who = one.reviewer === page.reviewer ? "You" : one.reviewer;
    const words = one.judgement ? DONE[one.judgement] : "noted";
    const item = el("li", { class: one.judgement || "" }, el("b", {}, `${MARK[one.judgement] || "·"} ${who} ${words}`));
    if (one.tags.length) item.append(` · ${one.tags.join(", ")}`);
    if (one.note) item.append(el("pre", { dir: "auto" }, one.note));
    return item;
  }));
  if (split(id)) {
    $("opinions").append(el("li", { class: "reject" }, "Reviewers disagree: it is left out while one of them rejects it."));
  }
  const own = myJudgement(id);
  for (const name of ["accept", "reject"]) $(name).setAttribute("aria-pressed", String(own === name));
  drawAttempts();
}

function drawAttempts() {
  const rollout = page.at;
  const others = rollout.task.attempts - 1;
  $("attempts-section").hidden = others < 1;
  $("to-attempts").hidden = others < 1;
  if (others < 1) return;
  const hidden = rollout.task.attempts - rollout.attempts.length;
  $("attempts-title").textContent = `${number(rollout.task.attempts)} attempts at this task, best first` + (hidden ? ` (${rollout.attempts.length} shown)` : "");
  $("to-attempts").textContent = `${number(others)} other attempt${others > 1 ? "s" : ""} at this task`;
  $("attempts").replaceChildren(...rollout.attempts.map((one) => {
    const judgement = judged(one.id);
    const top = el("span", { class: "top" }, el("b", {}, figure(one.reward)));
    const words = [];
    if (one.truncated) words.push("cut");
    if (!page.place.has(one.id)) words.push("not in the sample");
    if (words.length) top.append(el("span", { class: "soft small" }, words.join(", ")));
    if (judgement) top.append(el("span", { class: judgement }, `${MARK[judgement]} ${DONE[judgement]}`));
    const peek = el("span", { class: "peek", dir: "auto" }, one.preview || "(no text)");
    const current = one.id === rollout.id;
    return el("li", {}, el("button", { type: "button", "aria-current": String(current), onclick: () => go(one.id, true) }, top, peek));
  }));
}

function drawNotes() {
  const own = written(page.at.id);
  $("note").value = own.note;
  $("tag").value = "";
  drawTags(own.tags);
}

function drawTags(tags) {
  $("tags").replaceChildren(...tags.map((tag) => el("li", { dir: "auto" }, tag,
    el("button", { type: "button", "aria-label": `Remove the tag ${tag}`, onclick: () => saveTags(tags.filter((one) => one !== tag)) }, "×"))));
}

function drawRollout() {
  const rollout = page.at;
  const index = page.place.get(rollout.id);
  const stratum = index === undefined ? "" : page.queue[index].stratum;
  $("rollout").textContent = (index === undefined ? "Not in the sample" : `Rollout ${number(index + 1)} of ${number(page.queue.length)}`)
    + (stratum ? `, ${stratum} reward` : "");
  $("reward").textContent = figure(rollout.reward);
  $("task").textContent = rollout.task.attempts > 1
    ? `mean ${figure(rollout.task.mean)} over ${number(rollout.task.attempts)} attempts at the task` : "";
  const metrics = Object.entries(rollout.metrics);
  $("metrics").replaceChildren(...metrics.slice(0, 10).map(([name, value]) => el("li", {}, name, el("b", {}, figure(value)))));
  const trouble = rollout.problem ? `Cannot be trained on, shown as it is: ${rollout.problem}` : rollout.warning ? `Cannot be trained on: ${rollout.warning}` : "";
  $("warning").textContent = trouble;
  $("warning").hidden = !trouble;
  $("declared").replaceChildren();
  if (rollout.tools.length) $("declared").append(drawTools(rollout.tools));
  $("conversation").replaceChildren(...(rollout.problem ? rollout.items.map(drawItem) : rollout.messages.map(drawMessage)));
  drawMore(metrics);
  drawNotes();
  drawOpinions();
}

function drawTools(tools) {
  const names = tools.map((tool) => tool.name).join(", ");
  return fold(`${number(tools.length)} tool${tools.length > 1 ? "s" : ""} declared`, oneLine(names), "", (inside) => {
    for (const tool of tools) {
      inside.append(fold(tool.name, oneLine(tool.description), "", (part) => {
        if (tool.description) part.append(longText(tool.description, 2000));
        if (tool.parameters) part.append(longText(tool.parameters, 4000, "code"));
      }));
    }
  });
}

function drawItem(item) {
  return fold(item.title, oneLine(item.text), characters(item.text.length), (inside) => inside.append(longText(item.text, LONG.fold, "code")));
}

function drawMessage(message) {
  const body = el("div", { class: "body" });
  if (message.role === "tool") {
    body.append(fold(`result of ${message.name || "a tool"}`, oneLine(message.text), characters(message.text.length),
      (inside) => inside.append(longText(message.text, LONG.fold, "code"))));
    return el("div", { class: "message result" }, el("span", { class: "role" }), body);
  }
  if (message.reasoning) {
    body.append(fold("reasoning", oneLine(message.reasoning), characters(message.reasoning.length),
      (inside) => inside.append(longText(message.reasoning, LONG.fold)), "thought"));
  }
  if (message.images.length) body.append(el("div", { class: "images" }, ...message.images.map(drawImage)));
  if ((message.role === "system" || message.role === "developer") && message.text.length > LONG.system) {
    body.append(fold(`${message.role} prompt`, oneLine(message.text), characters(message.text.length),
      (inside) => inside.append(longText(message.text, LONG.fold))));
  } else if (message.text.trim()) {
    body.append(longText(message.text, message.role === "assistant" ? LONG.assistant : LONG.user));
  } else if (!message.calls.length && !message.images.length) {
    body.append(el("p", { class: "empty" }, message.text ? "(white space only)" : "(no text)"));
  }
  for (const call of message.calls) {
    body.append(fold(`calls ${call.name}`, oneLine(call.arguments), "", (inside) => inside.append(longText(call.arguments, LONG.fold, "code"))));
  }
  const role = message.policy ? "policy" : message.role;
  return el("div", { class: `message ${message.policy ? "policy" : ""}`.trim() }, el("span", { class: "role" }, role), body);
}

function drawImage(url) {
  if (!/^data:image\/(png|jpeg|gif|webp);base64,/.test(url)) return el("code", {}, `image: ${url.slice(0, 300)}`);
  const image = el("img", { alt: "image in the rollout", loading: "lazy" });
  image.src = url;
  return image;
}

function drawMore(metrics) {
  const rollout = page.at;
  const list = (pairs) => el("dl", { class: "list" }, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { dir: "auto" }, value)]));
  const parts = [el("h3", {}, "About it"), list([...rollout.facts, ["rollout", rollout.id]])];
  if (metrics.length > 10) {
    parts.push(fold(`all ${metrics.length} metrics`, "", "", (inside) => inside.append(list(metrics.map(([k, v]) => [k, figure(v)])))));
  }
  const labels = Object.entries(rollout.labels);
  if (labels.length > 8) parts.push(fold(`${labels.length} labels`, oneLine(labels.map(([k, v]) => `${k} ${v}`).join(", ")), "", (inside) => inside.append(list(labels))));
  else if (labels.length) parts.push(el("h3", {}, "Labels"), list(labels));
  for (const [title, text] of [["task fields", rollout.task.fields], ["other fields of the row", rollout.fields]]) {
    if (text) parts.push(fold(title, "", characters(text.length), (inside) => inside.append(longText(text, LONG.fold, "code"))));
  }
  parts.push(fold("the row as it is", "", "", async (inside) => {
    inside.textContent = "…";
    try {
      const text = await (await ask(`rollouts/${encodeURIComponent(rollout.id)}/raw`)).text();
      inside.replaceChildren(longText(text, LONG.fold, "code"));
    } catch (error) {
      inside.textContent = error.message;
    }
  }));
  $("more").replaceChildren(...parts);
}

function drawEnd() {
  const left = page.queue.filter((one) => !myJudgement(one.id)).length;
  const words = el("div", { class: "done" });
  if (left) {
    words.append(el("p", { class: "big" }, "Nothing here"), el("p", { class: "soft" }, "No rollout passes this filter."));
  } else {
    const count = (what) => page.queue.filter((one) => judged(one.id) === what).length;
    words.append(el("p", { class: "big" }, "All decided"), el("p", {}, `${number(count("accept"))} accepted, ${number(count("reject"))} rejected.`),
      el("p", { class: "soft" }, page.waiting || "You can close this page, and end gristmill review with Ctrl-C."));
  }
  return words;
}

let quiet;
function say(words) {
  $("said").classList.remove("gone");
  $("said").textContent = words;
  clearTimeout(quiet);
  quiet = setTimeout(() => $("said").classList.add("gone"), 2500);
}

// ---- moving

async function go(id, byHand = false) {
  const ticket = ++page.asked;
  saveNote();
  try {
    const rollout = await fetchRollout(id);
    if (ticket !== page.asked) return;
    page.at = rollout;
    if (page.place.has(id)) page.from = page.place.get(id);
    if (location.hash.slice(1) !== id) history[byHand ? "pushState" : "replaceState"](null, "", `#${id}`);
    $("main").hidden = false;
    $("problem").hidden = true;
    drawRollout();
    window.scrollTo(0, 0);
    $("rollout").focus({ preventScroll: true });
    const ahead = page.queue[page.from + 1];
    if (ahead) fetchRollout(ahead.id).catch(() => {});
  } catch (error) {
    fails(error);
  }
}

function step(direction) {
  const outside = page.at && !page.place.has(page.at.id);
  // From an attempt that is not in the queue, one step leads back to where it was opened.
  for (let index = outside ? page.from : page.from + direction; index >= 0 && index < page.queue.length; index += direction) {
    if (passes(page.queue[index].id) || outside) return go(page.queue[index].id, true);
  }
  return say(direction > 0 ? "That was the last one" : "This is the first one");
}

function onward() {
  const after = [...page.queue.slice(page.from + 1), ...page.queue.slice(0, page.from + 1)];
  const next = after.find((one) => !myJudgement(one.id));
  if (next) return go(next.id, true);
  drawOpinions();
  $("conversation").replaceChildren(drawEnd());
  $("declared").replaceChildren();
  window.scrollTo(0, 0);
  return say("All decided");
}

// ---- deciding

function queueWork(work) {
  page.work = page.work.then(work).catch(fails);
  return page.work;
}

function ownTags() {
  return [...$("tags").children].map((item) => item.firstChild.textContent);
}

// Tags and note as they are in the fields now go out with a decision on the rollout that is shown now.
function post(decision, then = () => {}) {
  const { id } = page.at;
  const entry = { rollout_id: id, decision, tags: ownTags(), note: $("note").value.trim() };
  page.pending.set(id, entry);
  return queueWork(async () => {
    try {
      const sent = json("decisions", entry);
      page.sent.add(entry);
      const answer = await sent;
      page.opinions.set(id, answer.opinions);
    } finally {
      if (page.pending.get(id) === entry) page.pending.delete(id);
    }
    $("problem").hidden = true;
    drawBar();
    if (page.at?.id === id) drawOpinions();
    await then(id);
  });
}

// The page is left: what still waits in the queue goes out now, and arrives without the page.
function leave() {
  saveNote();
  for (const entry of page.pending.values()) {
    if (!page.sent.has(entry)) ask("decisions", entry).catch(() => {});
    page.sent.add(entry);
  }
}

function decide(decision) {
  // A second key while the first is being saved would fall on a rollout that nobody has seen yet.
  if (!page.at || page.deciding) return;
  page.deciding = true;
  post(decision, async (id) => {
    say(DONE[decision][0].toUpperCase() + DONE[decision].slice(1));
    if (page.place.has(id)) await onward();
  }).finally(() => { page.deciding = false; });
}

function undo() {
  return queueWork(async () => {
    const answer = await json("undo", {});
    if (!answer.id) return say("There is nothing of yours to take back");
    page.opinions.set(answer.id, answer.opinions);
    drawBar();
    if (page.at?.id === answer.id) drawRollout();
    else {
      page.at = null; // what was typed there is saved or taken back already
      await go(answer.id, true);
    }
    return say(answer.undone === "comment" ? "Taken back: tags and note" : `Taken back: ${DONE[answer.undone]}`);
  });
}

function saveTags(tags) {
  drawTags(tags);
  post("comment");
  const known = [...$("known-tags").children].map((option) => option.value);
  $("known-tags").append(...tags.filter((tag) => !known.includes(tag)).map((tag) => el("option", { value: tag })));
}

function saveNote() {
  if (page.at && $("note").value.trim() !== written(page.at.id).note) post("comment");
}

// ---- keys

function toggleFolds() {
  const folds = [...document.querySelectorAll("article details")];
  const open = folds.some((one) => !one.open);
  for (const one of folds) one.open = open;
}

function toggleFilter() {
  $("filter").value = $("filter").value === "undecided" ? "all" : "undecided";
  filtered();
}

function filtered() {
  const left = page.queue.filter((one) => passes(one.id)).length;
  say(`${number(left)} of ${number(page.queue.length)} rollouts`);
  if (page.at && passes(page.at.id)) return;
  const after = [...page.queue.slice(page.from), ...page.queue.slice(0, page.from)];
  const next = after.find((one) => passes(one.id));
  if (next) go(next.id, true);
}

const KEYS = {
  a: () => decide("accept"),
  r: () => decide("reject"),
  u: undo,
  j: () => step(1),
  k: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  t: () => $("tag").focus(),
  n: () => $("note").focus(),
  f: toggleFilter,
  o: toggleFolds,
  "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox]), textarea, select, dialog");
  if (event.key === "Escape" && typing && !$("help").open) {
    event.target.blur();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !$("keys-on").checked) return;
  const act = KEYS[event.key];
  if (!act || (event.repeat && "aru".includes(event.key))) return;
  // Arrows move inside what scrolls sideways or is a control; letters never do.
  event.preventDefault();
  act();
});

// ---- start

for (const name of ["accept", "reject"]) $(name).addEventListener("click", () => decide(name));
$("undo").addEventListener("click", undo);
$("next").addEventListener("click", () => step(1));
$("previous").addEventListener("click", () => step(-1));
$("help-open").addEventListener("click", () => $("help").showModal());
$("filter").addEventListener("change", () => { filtered(); $("filter").blur(); });
$("note").addEventListener("blur", saveNote);
// The address's fragment names the rollout, so these are buttons and no links.
for (const [button, target] of [["to-attempts", "attempts-title"], ["skip", "rollout"]]) {
  $(button).addEventListener("click", () => { $(target).scrollIntoView(); $(target).focus({ preventScroll: true }); });
}
$("tag-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const tag = $("tag").value.trim();
  $("tag").value = "";
  if (tag && !ownTags().includes(tag)) saveTags([...ownTags(), tag].sort());
});
$("keys-on").addEventListener("change", () => sessionStorage.setItem("keys", $("keys-on").checked ? "on" : "off"));
window.addEventListener("hashchange", () => { if (location.hash.slice(1) !== page.at?.id) go(location.hash.slice(1)); });
window.addEventListener("popstate", () => { if (location.hash.slice(1) && location.hash.slice(1) !== page.at?.id) go(location.hash.slice(1)); });
window.addEventListener("pagehide", leave);
document.addEventListener("visibilitychange", () => {
  // Others may have decided meanwhile.
  if (document.visibilityState === "visible" && page.queue.length) {
    refresh().then(() => { drawBar(); if (page.at) drawOpinions(); }).catch(fails);
  }
});

(async () => {
  try {
    $("keys-on").checked = sessionStorage.getItem("keys") !== "off";
    const state = await refresh();
    page.queue = state.queue;
    page.place = new Map(state.queue.map((one, index) => [one.id, index]));
    page.reviewer = state.reviewer;
    page.waiting = state.waiting;
    $("title").textContent = `${state.title} · ${state.reviewer}`;
    $("known-tags").append(...state.tags.map((tag) => el("option", { value: tag })));
    drawBar();
    const wanted = location.hash.slice(1);
    const start = page.queue.find((one) => !myJudgement(one.id)) || page.queue[0];
    // An address from another sample may name a rollout that is not here.
    const there = wanted && await fetchRollout(wanted).then(() => true, () => false);
    await go(there ? wanted : start.id);
  } catch (error) {
    fails(error);
  }
})();
