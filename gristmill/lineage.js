"use strict";
// Click, Enter or Space chooses a node: its ancestors and descendants stay lit, its manifest is shown beside the graph.
// Left and right go to a parent or a child, up and down to the one above or below, Escape shows all again.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const graph = document.querySelector(".graph");
  const details = document.getElementById("details");
  const hint = details.firstElementChild;
  const nodes = [...document.querySelectorAll(".node")];
  const edges = [...document.querySelectorAll(".edge")];
  const parents = {}, children = {};
  for (const [from, to] of data.edges) {
    (parents[to] ||= []).push(from);
    (children[from] ||= []).push(to);
  }

  const reach = (start, to) => {
    const found = new Set([start]);
    for (const id of found) for (const other of to[id] || []) found.add(other);
    return found;
  };

  const make = (tag, text, ...inside) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    element.append(...inside);
    return element;
  };

  const block = (title, text, open) => {
    const fold = make("details", null, make("summary", title), make("pre", text));
    fold.open = open;
    return fold;
  };

  const table = (title, heads, rows) => {
    const head = make("tr", null, ...heads.map((one) => make("th", one)));
    const body = rows.map((row) => make("tr", null, ...row.map((one) => make("td", one))));
    const box = make("div", null, make("table", null, make("thead", null, head), make("tbody", null, ...body)));
    box.className = "scroll";
    const fold = make("details", null, make("summary", title), box);
    fold.open = true;
    return fold;
  };

  const size = (bytes) => {
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (bytes < 1000 || unit === "GB") return `${bytes < 10 && unit !== "B" ? bytes.toFixed(1) : Math.round(bytes)} ${unit}`;
      bytes /= 1000;
    }
  };

  const show = (id) => {
    const node = data.nodes[id], told = node.told;
    const list = make("dl");
    const say = (name, value) => { if (value) list.append(make("dt", name), make("dd", value)); };
    say("kind", node.kind);
    say("sha256", node.digest);
    say("turn", node.turn ? String(node.turn) : "");
    say("called", node.names.join(", "));
    say("why here", node.how);
    say("says", node.summary);
    say("marks", node.marks.join(", "));
    say("notes", node.notes.join("; "));
    say("made", told.made || "it is not in the store any more");
    say("made of", (parents[id] || []).map((one) => `${data.nodes[one].label} ${one}`).join(", "));
    say("went into", (children[id] || []).map((one) => `${data.nodes[one].label} ${one}`).join(", "));
    const parts = [make("h2", node.label), list];
    if (told.rows) parts.push(table("first rows", ["row", "role", "rollout", "reward", "line"], told.rows));
    if (told.settings) parts.push(block("settings", told.settings, true));
    if (told.counts) parts.push(block("counts", told.counts, false));
    if (told.files) parts.push(table("files", ["name", "size", "sha256"],
      told.files.map(([name, bytes, sha]) => [name, size(bytes), sha.slice(0, 12)])));
    details.replaceChildren(...parts);
    details.scrollTop = 0;
  };

  const choose = (id) => {
    const up = reach(id, parents), down = reach(id, children);
    graph.classList.add("chosen");
    for (const node of nodes) {
      node.classList.toggle("on", up.has(node.id) || down.has(node.id));
      node.setAttribute("aria-pressed", String(node.id === id));
    }
    for (const edge of edges) {
      const { from, to } = edge.dataset;
      const below = down.has(from) && down.has(to);
      edge.classList.toggle("on", below || (up.has(from) && up.has(to)));
      edge.classList.toggle("down", below);
    }
    show(id);
  };

  const clear = () => {
    graph.classList.remove("chosen");
    for (const one of [...nodes, ...edges]) one.classList.remove("on", "down");
    for (const node of nodes) node.setAttribute("aria-pressed", "false");
    details.replaceChildren(hint);
  };

  const beside = (node, step) => {
    const at = (one) => one.getBoundingClientRect();
    const same = nodes.filter((one) => Math.abs(at(one).x - at(node).x) < 2).sort((a, b) => at(a).y - at(b).y);
    return same[same.indexOf(node) + step];
  };

  for (const node of nodes) {
    node.addEventListener("click", () => choose(node.id));
    node.addEventListener("keydown", (event) => {
      const next = {
        ArrowLeft: () => document.getElementById((parents[node.id] || [])[0]),
        ArrowRight: () => document.getElementById((children[node.id] || [])[0]),
        ArrowUp: () => beside(node, -1),
        ArrowDown: () => beside(node, 1),
        Enter: () => node,
        " ": () => node,
      }[event.key];
      if (!next) return;
      event.preventDefault();
      const to = next();
      if (to) { to.focus(); choose(to.id); }
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });

  const named = document.getElementById(location.hash.slice(1));
  const first = named && data.nodes[named.id] ? named.id : data.asked[0];
  if (first) {
    choose(first);
    const node = document.getElementById(first);
    graph.scrollLeft = node.transform.baseVal[0].matrix.e - graph.clientWidth / 2 + 74;
    graph.scrollTop = node.transform.baseVal[0].matrix.f - graph.clientHeight / 2;
  }
})();
