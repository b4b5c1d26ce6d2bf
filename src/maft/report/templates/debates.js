// The browser of debates. All text of a model goes into text nodes, never into markup.
//
// A debate is [question, kinds, rounds, vote, first, samples, error]; a round is [title, turns]; a turn is
// [agent, answer, right, text, note, summary, note, fate, learned, difference]; a vote is
// [[[answer, votes] ...], abstained, label, right, drawn, why nobody learns from it]; first is [answer, right].
// Texts are numbers of `texts`, -1 is none. Of what is right, 1 is yes, 0 no, -1 unknown. A note is the number of
// characters that are not shown, or -1 where the model was stopped at its limit. A difference is a list of [side, text]:
// 0 is in the answer and in the one that won, 1 in the answer only, -1 in the one that won only.
(async () => {
  const home = document.getElementById("browser");
  if (!home) return;
  const { kinds, questions, sets, texts } = JSON.parse(await unpack(document.getElementById("debate-data")));
  const PAGE = 50;
  const LONG = 1500; // characters of a reply that is folded
  const state = { set: sets[0].key, kinds: new Set(), search: "", open: "", shown: PAGE };

  async function unpack(element) {
    if (element.type === "application/json") return element.textContent;
    const bytes = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  }

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const text = (number) => (number < 0 ? null : texts[number]);
  const mark = (right) =>
    right < 0 ? null : make("span", { class: right ? "is-right" : "is-wrong" }, right ? " ✓ right" : " ✗ wrong");
  const folded = (words) => (words.length > 120 ? make("span", { title: words }, `${words.slice(0, 118)} …`) : words);
  const answer = (number) =>
    text(number) === null ? make("span", { class: "soft" }, "no readable answer") : folded(text(number));
  const quiet = (...children) => make("p", { class: "soft" }, ...children);
  const current = () => sets.find((one) => one.key === state.set);

  // ---- what is asked for --------------------------------------------------------------------------------------------

  const number = (count) => count.toLocaleString("en");
  const chooser = make("select", { "aria-label": "Which debates" });
  for (const one of sets) chooser.append(make("option", { value: one.key }, `${one.title} (${number(one.debates.length)})`));
  const search = make("input", { type: "search", placeholder: "Search questions, answers, replies", "aria-label": "Search debates" });
  const chips = make("div", { class: "chips", role: "group", "aria-label": "Only debates that are" });
  const count = make("p", { class: "soft", role: "status" });
  const also = make("div", { class: "chips also" });
  const list = make("ol", { class: "list" });
  const more = make("button", { class: "chip more-rows", type: "button" });
  home.replaceChildren(make("div", { class: "tools" }, chooser, search), chips, count, also, list, more);

  function searched() {
    const wanted = state.search.trim().toLowerCase();
    const hits = wanted && new Set(texts.flatMap((one, n) => (one.toLowerCase().includes(wanted) ? [n] : [])));
    return (debate) => !wanted || matches(debate, wanted, hits);
  }

  function drawElsewhere(fits) {
    const others = !state.search.trim() ? [] : sets.filter((one) => one.key !== state.set).map((one) => [one, one.debates.filter(fits).length]);
    const buttons = others.filter(([, hits]) => hits).map(([one, hits]) => {
      const button = make("button", { type: "button", class: "chip" }, one.title, make("span", {}, number(hits)));
      button.addEventListener("click", () => {
        Object.assign(state, { set: one.key, kinds: new Set(), shown: PAGE });
        draw();
      });
      return button;
    });
    also.hidden = !buttons.length;
    also.replaceChildren(make("span", { class: "soft" }, "Found as well in:"), ...buttons);
  }

  function matches([question, , rounds, , , , error], wanted, hits) {
    const [id, ...asked] = questions[question];
    return (
      id.toLowerCase().includes(wanted) ||
      asked.some((one) => hits.has(one)) ||
      hits.has(error) ||
      rounds.some(([, turns]) => turns.some(([, given, , said, , summary]) => [given, said, summary].some((n) => hits.has(n))))
    );
  }

  // ---- the list -----------------------------------------------------------------------------------------------------

  function drawChips() {
    const all = current().debates;
    chips.replaceChildren();
    kinds.forEach(([name, words], kind) => {
      const size = all.filter((debate) => debate[1].includes(kind)).length;
      if (!size && !state.kinds.has(kind)) return;
      const chip = make("button", { class: "chip", type: "button", title: words, "data-kind": name, "aria-pressed": state.kinds.has(kind) }, name, make("span", {}, number(size)));
      chip.addEventListener("click", () => {
        if (!state.kinds.delete(kind)) state.kinds.add(kind);
        state.shown = PAGE;
        draw();
        chips.querySelector(`[data-kind="${name}"]`)?.focus();
      });
      chips.append(chip);
    });
  }

  function draw() {
    const fits = searched();
    const debates = current().debates.filter((debate) => [...state.kinds].every((kind) => debate[1].includes(kind)) && fits(debate));
    drawElsewhere(fits);
    chooser.value = state.set;
    if (search.value !== state.search) search.value = state.search;
    drawChips();
    count.textContent =
      debates.length === current().debates.length
        ? `${number(debates.length)} debates`
        : `${number(debates.length)} of ${number(current().debates.length)} debates`;
    const place = debates.findIndex((debate) => questions[debate[0]][0] === state.open);
    if (place >= state.shown) state.shown = place + 1;
    list.replaceChildren(...debates.slice(0, state.shown).map(row));
    more.hidden = debates.length <= state.shown;
    more.textContent = `Show ${number(Math.min(PAGE, debates.length - state.shown))} more`;
    remember();
  }

  function row(debate) {
    const [question, held, , vote, first] = debate;
    const [id, asked] = questions[question];
    const button = make(
      "button",
      { type: "button", "aria-expanded": "false" },
      make("span", { class: "question" }, texts[asked].slice(0, 300)),
      make("span", { class: "path" }, ...path(vote, first)),
      held.length ? make("span", { class: "tags" }, held.map((kind) => kinds[kind][0]).join(" · ")) : null,
    );
    const item = make("li", { "data-id": id }, button);
    button.addEventListener("click", () => {
      toggle(item, debate, button.getAttribute("aria-expanded") === "false");
      state.open = button.getAttribute("aria-expanded") === "true" ? id : "";
      button.focus({ preventScroll: true }); // not every browser does it
      remember();
    });
    if (id === state.open) toggle(item, debate, true);
    return item;
  }

  function path(vote, [before, wasRight]) {
    if (!vote) return [];
    const sign = (right) => mark(right) && make("span", { class: right ? "is-right" : "is-wrong" }, right ? " ✓" : " ✗");
    const last = [answer(vote[2]), sign(vote[3])];
    return before === vote[2] ? last : [answer(before), sign(wasRight), " → ", ...last].filter((part) => part !== null);
  }

  function toggle(item, debate, open) {
    item.firstChild.setAttribute("aria-expanded", open);
    item.classList.toggle("is-open", open);
    item.querySelector(".transcript")?.remove();
    if (open) item.append(transcript(debate));
  }

  // ---- one debate ---------------------------------------------------------------------------------------------------

  function transcript([question, , rounds, vote, , samples, error]) {
    const [id, asked, gold] = questions[question];
    const isCode = gold >= 0 && text(gold).startsWith("```");
    const known = gold < 0 ? "The gold answer is not known." : isCode ? "Training never sees the solution and its tests:" : `The gold answer is ${text(gold)}; training never sees it.`;
    const whole = make("div", { class: "transcript" }, quiet(`${id}. ${known}`));
    if (isCode) whole.append(make("div", { class: "said" }, ...formatted(text(gold))));
    if (text(asked).length > 120) whole.append(make("div", { class: "said" }, ...formatted(text(asked))));
    for (const [title, turns] of rounds) {
      whole.append(make("h3", {}, text(title)), make("div", { class: "turns" }, ...turns.map(turn)));
    }
    if (samples.length) whole.append(quiet("Further first answers, which only vote: ", samples.map((n) => text(n) ?? "unreadable").join(", ")));
    if (error >= 0) whole.append(make("p", { class: "vote" }, `The debate failed: ${text(error)}`));
    if (vote) whole.append(outcome(vote));
    whole.append(elsewhere(question));
    return whole;
  }

  function turn([agent, given, right, said, note, summary, summaryNote, fate, learned, differences]) {
    return make(
      "div",
      { class: "turn" },
      make("header", {}, make("span", {}, text(agent).replace("_", " ")), make("span", {}, answer(given), mark(right))),
      summary < 0
        ? null
        : make("details", {}, make("summary", { class: "soft" }, "the summary it has read"), reply(summary, summaryNote)),
      reply(said, note),
      differences.length ? difference(differences) : null,
      fate < 0 ? null : make("div", { class: learned ? "fate is-kept" : "fate is-dropped" }, text(fate)),
    );
  }

  function reply(said, note) {
    const end = note < 0 ? " [stopped at the token limit]" : note ? ` [… ${number(note)} more characters not shown]` : "";
    const words = text(said) || "[empty]";
    const whole = make("div", { class: "said" }, ...formatted(words), make("span", { class: "soft" }, end));
    if (words.length <= LONG) return whole;
    const beginning = make("summary", { class: "soft" }, `${words.slice(0, 150)} … (${number(words.length)} characters)`);
    return make("details", state.search ? { open: "" } : {}, beginning, whole);
  }

  function difference(pieces) {
    const parts = pieces.map(([side, words]) => (side ? make(side < 0 ? "del" : "ins", {}, words) : words));
    const isCode = pieces.some(([, words]) => words.endsWith("\n"));
    const block = make(isCode ? "pre" : "div", { class: isCode ? "code" : "said" }, ...parts);
    const size = pieces.reduce((sum, [, words]) => sum + words.length, 0);
    return make("details", { class: "difference", ...(size < 400 && { open: "" }) }, make("summary", { class: "soft" }, "against the answer that won"), block);
  }

  // Blocks between ``` are code: in another type, with keywords and texts in colours, and folded where they are long.
  function formatted(words) {
    const parts = [];
    let from = 0;
    for (const block of words.matchAll(/^[ \t]*```[^\n]*\n([\s\S]*?)(?:^[ \t]*```[ \t]*$\n?|(?![\s\S]))/gm)) {
      parts.push(...lit(words.slice(from, block.index)), code(block[1]));
      from = block.index + block[0].length;
    }
    return [...parts, ...lit(words.slice(from))];
  }

  function code(words) {
    const inside = make("code", {});
    let from = 0;
    for (const token of words.matchAll(TOKENS)) {
      inside.append(...lit(words.slice(from, token.index)), make("span", { class: token[1] ? "literal" : "keyword" }, ...lit(token[0])));
      from = token.index + token[0].length;
    }
    inside.append(...lit(words.slice(from)));
    const block = make("pre", { class: "code" }, inside);
    const lines = words.trim().split("\n").length;
    return lines > 16 ? make("details", {}, make("summary", { class: "soft" }, `${lines} lines of code`), block) : block;
  }

  const TOKENS = /(#[^\n]*|"[^"\n]*"|'[^'\n]*')|\b(?:and|as|assert|async|await|break|class|continue|def|del|elif|else|except|False|finally|for|from|global|if|import|in|is|lambda|None|nonlocal|not|or|pass|raise|return|True|try|while|with|yield)\b/g;

  function lit(words) {
    const wanted = state.search.trim().toLowerCase();
    const lower = words.toLowerCase();
    if (!wanted || lower.length !== words.length) return [words];
    const parts = [];
    let from = 0;
    for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
      parts.push(words.slice(from, at), make("mark", { class: "search-hit" }, words.slice(at, at + wanted.length)));
      from = at + wanted.length;
    }
    return [...parts, words.slice(from)];
  }

  function outcome([counts, abstained, label, right, drawn, dropped]) {
    const said = counts.flatMap(([given, votes], n) => [n ? ", " : "", folded(text(given)), ` × ${votes}`]);
    if (abstained) said.push(`${said.length ? ", " : ""}no readable answer × ${abstained}`);
    return make(
      "p",
      { class: "vote" },
      make("strong", {}, "Vote: "),
      ...(said.length ? said : ["none"]),
      `. ${current().training ? "Pseudo-label" : "Answer"}: `,
      label < 0 ? "none" : make("strong", {}, folded(text(label))),
      mark(right),
      drawn ? ", drawn among equals" : "",
      dropped < 0 ? "." : make("strong", {}, `. Nobody learns from this debate: ${text(dropped)}.`),
    );
  }

  function elsewhere(question) {
    const [id] = questions[question];
    const others = sets.filter((one) => one.key !== state.set && one.debates.some((debate) => debate[0] === question));
    if (!others.length) return "";
    const buttons = others.map((one) => {
      const button = make("button", { type: "button", class: "chip" }, one.title);
      button.addEventListener("click", () => {
        Object.assign(state, { set: one.key, kinds: new Set(), search: "", open: id, shown: PAGE });
        draw();
        reveal();
      });
      return button;
    });
    return make("div", { class: "chips" }, make("span", { class: "soft" }, "The same question:"), ...buttons);
  }

  // ---- the address, the keys ----------------------------------------------------------------------------------------

  function remember() {
    const said = new URLSearchParams({ set: state.set });
    for (const kind of state.kinds) said.append("kind", kinds[kind][0]);
    if (state.search) said.set("search", state.search);
    if (state.open) said.set("open", state.open);
    const plain = state.set === sets[0].key && !state.kinds.size && !state.search && !state.open;
    const address = plain ? (location.hash.startsWith("#debates?") ? "#debates" : location.hash) : `#debates?${said}`;
    if (address !== location.hash) history.replaceState(null, "", address || " ");
  }

  function recall() {
    if (!location.hash.startsWith("#debates?")) return false;
    const said = new URLSearchParams(location.hash.slice("#debates?".length));
    state.set = sets.some((one) => one.key === said.get("set")) ? said.get("set") : sets[0].key;
    state.kinds = new Set(said.getAll("kind").map((name) => kinds.findIndex(([kind]) => kind === name)).filter((kind) => kind >= 0));
    state.search = said.get("search") ?? "";
    state.open = said.get("open") ?? "";
    state.shown = PAGE;
    return true;
  }

  function reveal() {
    const open = list.querySelector(".is-open");
    (open ?? document.getElementById("debates")).scrollIntoView();
    open?.firstChild.focus({ preventScroll: true });
  }

  chooser.addEventListener("change", () => {
    Object.assign(state, { set: chooser.value, shown: PAGE });
    draw();
  });
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      Object.assign(state, { search: search.value, shown: PAGE });
      draw();
    }, 150);
  });
  more.addEventListener("click", () => {
    const before = state.shown;
    state.shown += PAGE;
    draw();
    list.children[before]?.firstChild.focus();
  });
  list.addEventListener("keydown", (event) => {
    const item = event.target.closest("li");
    const next = { ArrowDown: item?.nextElementSibling, ArrowUp: item?.previousElementSibling }[event.key];
    if (next && event.target === item.firstChild) {
      event.preventDefault();
      next.firstChild.focus();
    }
    if (event.key === "Escape" && item?.classList.contains("is-open")) {
      item.firstChild.click();
      item.firstChild.focus();
    }
  });
  document.addEventListener("keydown", (event) => {
    const arrow = event.key === "ArrowDown" || event.key === "ArrowUp";
    const place = home.getBoundingClientRect();
    const inView = place.top < innerHeight / 2 && place.bottom > 0;
    if (arrow && ((event.target === search && event.key === "ArrowDown") || (event.target === document.body && inView))) {
      event.preventDefault();
      (list.querySelector(".is-open") ?? list.firstElementChild)?.firstChild.focus();
    }
    if (event.key === "/" && !event.target.closest("input, select, textarea")) {
      event.preventDefault();
      search.focus();
    }
  });
  addEventListener("hashchange", () => {
    if (recall()) {
      draw();
      reveal();
    }
  });
  const asked = recall();
  draw();
  if (asked) reveal();
})();
