// The page itself: what is typed, and a column of hits for each system. Texts of documents and
// queries go into it as text alone.

const SHOWN = 10; // hits of a column
const BARS = 4; // shares of a hit

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A name that may break behind its dots and underscores. */
const breakable = (name) => name.split(/(?<=[._/])(?=[^._/])/).flatMap((part) => [element("wbr"), part]);

const figure = (value) => (Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(3));

function start(data) {
  const systems = data.systems.map((system) => ({
    ...system, engine: null, kind: system.kind,
    ask(text, k) {
      this.engine ??= new KINDS[this.kind](this, data.documents.length); // at its first query
      return this.engine.ask(text, k);
    },
  }));
  const recorded = new Map(data.queries.map((query) => [query.text, query]));
  const input = document.getElementById("query");
  const status = document.getElementById("status");
  const columns = document.getElementById("columns");
  let next = 0;

  for (const query of data.queries) {
    document.getElementById("recorded").append(element("option", { value: query.text }));
  }

  function hitOf(hit, rank, widest, relevant) {
    const [id, title, text] = data.documents[hit.place];
    const good = relevant.has(hit.place);
    const body = element("li", {
      class: good ? "hit relevant" : "hit", "data-place": hit.place, "data-id": id,
      "data-score": hit.score,
    });
    body.append(element("div", { class: "head" },
      element("span", { class: "rank" }, String(rank)),
      element("b", { title: id }, ...breakable(title || id)),
      element("span", { class: "score" }, figure(hit.score))));
    if (good) body.append(element("p", { class: "mark" }, "✓ relevant"));
    body.append(element("details", {}, element("summary", {}, text)));
    if (hit.shares.length) body.append(bars(hit.shares, widest));
    return body;
  }

  function bars(shares, widest) {
    const list = element("ul", { class: "shares", "aria-label": "Shares of the score" });
    const rest = shares.slice(BARS);
    const shown = shares.slice(0, BARS);
    if (rest.length) {
      const sum = rest.reduce((total, [, share]) => total + share, 0);
      shown.push([`${rest.length} more`, sum, "rest"]);
    }
    for (const [term, share, kind] of shown) {
      const bar = element("i", {});
      bar.style.width = `${Math.max(1, (100 * Math.abs(share)) / widest)}%`;
      list.append(element("li", { class: kind ?? null },
        element("span", { class: "term" }, term), element("span", { class: "track" }, bar),
        element("span", { class: "share" }, figure(share))));
    }
    return list;
  }

  function columnOf(system, number, text, query) {
    const relevant = new Set(query?.relevant);
    const found = system.ask(text, SHOWN + 1);
    const hits = (found ?? []).filter((hit) => hit.place !== query?.itself).slice(0, SHOWN);
    const good = hits.filter((hit) => relevant.has(hit.place)).length;
    const widest = Math.max(...hits.flatMap((hit) => hit.shares.map(([, share]) => Math.abs(share))), 0);
    const column = element("section", { class: "column", "data-system": system.name });
    column.style.setProperty("--own", `var(--s${number % 8})`);
    const heading = element("h2", {}, system.name);
    if (relevant.size && found) {
      heading.append(element("small", {}, `${good} of ${relevant.size} relevant`));
    }
    column.append(heading, element("p", { class: "note" }, system.note));
    if (found === null) {
      column.append(element("p", { class: "empty" },
        "This system answers recorded queries only; the arrow beside the field goes through them."));
    } else if (!hits.length) {
      column.append(element("p", { class: "empty" }, "No document shares a term with this query."));
    }
    const list = element("ol", {});
    hits.forEach((hit, i) => list.append(hitOf(hit, i + 1, widest, relevant)));
    column.append(list);
    return column;
  }

  function say(query) {
    if (!query) return "Not a recorded query: nobody has judged its answers.";
    const names = query.relevant.map((place) => data.documents[place][1] || data.documents[place][0]);
    return `Recorded query; relevant: ${names.join(", ") || "nothing"}`;
  }

  function answer() {
    const text = input.value;
    const query = recorded.get(text);
    status.textContent = text.trim() ? say(query) : "Type a query, or take a recorded one.";
    columns.replaceChildren(...(text.trim()
      ? systems.map((system, i) => columnOf(system, i, text, query)) : []));
    const hash = `#q=${encodeURIComponent(text)}`;
    // A frame without an address of its own keeps none.
    if (location.protocol !== "about:" && location.hash !== hash) history.replaceState(null, "", hash);
  }

  function take(text) {
    input.value = text;
    answer();
  }

  // The same document in the other columns is picked out.
  function pick(event) {
    const place = event.target.closest?.(".hit")?.dataset.place;
    for (const hit of columns.querySelectorAll(".hit")) {
      hit.classList.toggle("same", event.type === "mouseover" && hit.dataset.place === place);
    }
  }

  let waiting = 0;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(answer, 120);
  });
  document.getElementById("form").addEventListener("submit", (event) => {
    event.preventDefault();
    answer();
  });
  const button = document.getElementById("next");
  button.hidden = !data.queries.length;
  button.addEventListener("click", () => {
    next = (next + 1) % data.queries.length;
    take(data.queries[next].text);
  });
  columns.addEventListener("mouseover", pick);
  columns.addEventListener("mouseout", pick);

  const asked = () => new URLSearchParams(location.hash.slice(1)).get("q");
  addEventListener("hashchange", () => take(asked() ?? ""));
  take(asked() ?? data.queries[0]?.text ?? "");
}

start(JSON.parse(document.getElementById("data").textContent));
