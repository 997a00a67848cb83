// Systems that answer a query: each has `ask(text, k)` -> hits {place, score, shares}, or null
// where it has no answer for this text. `shares` are [term, share of the score], largest first.

/** The k best of scores by place; equal scores: the document that comes first comes first. */
function best(scores, places, k) {
  const order = Array.from(places).sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, k).map((place) => ({ place, score: scores[place] }));
}

/** A term with an ending: "=" doubles its last letter, "-" takes it off. */
function form(term, ending) {
  const stem = { "=": term + term.slice(-1), "-": term.slice(0, -1) }[ending[0]] ?? term;
  return stem + ending.replace(/^[=-]/, "");
}

/** Word -> number of its term: a term with each of its endings, then words that are irregular. */
function wordTable({ terms, endings, forms, irregular }) {
  const table = new Map();
  terms.forEach((term, number) => {
    for (const letter of forms[number]) {
      table.set(form(term, endings[letter.charCodeAt(0) - 97]), number);
    }
  });
  for (const [word, number] of Object.entries(irregular)) table.set(word, number);
  return table;
}

const SPLITTERS = {
  words(split) {
    const stopwords = new Set(split.stopwords);
    const table = wordTable(split);
    return (text) => splitWords(text).filter((word) => !stopwords.has(word))
      .map((word) => table.get(word));
  },
  pieces(split) {
    const numbersOf = tokeniser(split);
    const columns = new Map(Array.from(numbers(split.used), (piece, i) => [piece, i]));
    return (text) => numbersOf(text).map((piece) => columns.get(piece));
  },
};

function tokeniser({ tokens, special, unknown, lowercase }) {
  const vocabulary = new Map(tokens.map((token, i) => [token, i]));
  return (text) => wordPieces(text, vocabulary, unknown, lowercase);
}

/** Postings of an inverted index: term t is in documents[starts[t] .. starts[t + 1]]. */
class Sparse {
  constructor(system, count) {
    this.count = count;
    this.split = SPLITTERS[system.split.kind](system.split);
    this.terms = system.terms;
    this.once = system.once;
    this.weights = system.weights && numbers(system.weights);
    this.starts = numbers(system.starts);
    this.documents = numbers(system.documents);
    this.impacts = numbers(system.impacts);
  }

  /** Terms of a query that the documents have, with their weights. */
  query(text) {
    const found = new Map();
    for (const term of this.split(text)) {
      if (term === undefined) continue;
      const before = this.once ? 0 : found.get(term) ?? 0;
      found.set(term, before + (this.weights ? this.weights[term] : 1));
    }
    return [...found].sort(([a], [b]) => a - b);
  }

  ask(text, k) {
    const scores = new Float32Array(this.count);
    const seen = new Map(); // place -> shares
    for (const [term, weight] of this.query(text)) {
      if (!(weight > 0)) continue;
      for (let i = this.starts[term]; i < this.starts[term + 1]; i += 1) {
        const place = this.documents[i];
        const share = weight * this.impacts[i];
        scores[place] += share;
        if (!seen.has(place)) seen.set(place, []);
        seen.get(place).push([this.terms[term], share]);
      }
    }
    return best(scores, seen.keys(), k).map((hit) => ({
      ...hit, shares: seen.get(hit.place).sort((a, b) => b[1] - a[1]),
    }));
  }
}

/** Vectors and inner products; the query's encoder runs here. */
class Dense {
  constructor(system, count) {
    this.count = count;
    this.tokens = tokeniser(system.split);
    this.around = system.around; // [CLS], [SEP]
    this.limit = system.limit;
    this.bert = new Bert(system.bert);
    this.vectors = numbers(system.vectors);
  }

  query(text) {
    const inner = this.tokens(text).slice(0, this.limit - 2);
    return this.bert.encode([this.around[0], ...inner, this.around[1]]);
  }

  ask(text, k) {
    const query = this.query(text);
    const scores = new Float32Array(this.count);
    for (let place = 0; place < this.count; place += 1) {
      let dot = 0;
      for (let j = 0; j < query.length; j += 1) dot += query[j] * this.vectors[place * query.length + j];
      scores[place] = dot;
    }
    return best(scores, scores.keys(), k).map((hit) => ({ ...hit, shares: [] }));
  }
}

/** Answers as Python gave them, of the recorded queries alone. */
class Recorded {
  constructor(system) {
    this.answers = new Map(system.answers);
  }

  ask(text, k) {
    const hits = this.answers.get(text);
    return hits ? hits.slice(0, k).map(([place, score, shares]) => ({ place, score, shares })) : null;
  }
}

const KINDS = { sparse: Sparse, dense: Dense, recorded: Recorded };
