// Texts to terms, split as `encoders.py` says; checked against Python in the tests.

/** Lower-case runs of two and more letters, digits or underscores. */
function splitWords(text) {
  return text.toLowerCase().match(/[\p{L}\p{N}_]{2,}/gu) ?? [];
}

const IDEOGRAPH = new RegExp(
  "[\\u4e00-\\u9fff\\u3400-\\u4dbf\\uf900-\\ufaff\\u{20000}-\\u{2a6df}\\u{2a700}-\\u{2b73f}" +
  "\\u{2b740}-\\u{2b81f}\\u{2b920}-\\u{2ceaf}\\u{2f800}-\\u{2fa1f}]", "gu");
const PUNCTUATION = /([\p{P}$+<=>^`|~])/gu;
const LONGEST = 100; // characters of a word; longer ones are unknown

/** BERT's word pieces as numbers. `vocabulary` is a Map of piece -> number. */
function wordPieces(text, vocabulary, unknown, lowercase) {
  let clean = text.replace(/(?![\t\n\r])[\p{C}\ufffd]/gu, "").replace(/\p{White_Space}/gu, " ");
  clean = clean.replace(IDEOGRAPH, " $& ");
  if (lowercase) {
    clean = clean.normalize("NFD").replace(/\p{Mn}/gu, "");
    clean = Array.from(clean, (c) => c.toLowerCase()).join(""); // a letter at a time, as there
  }
  const words = clean.replace(PUNCTUATION, " $1 ").split(" ").filter(Boolean);
  return words.flatMap((word) => piecesOf(Array.from(word), vocabulary) ?? [unknown]);
}

/** The longest piece first, then the longest of the rest; null where a rest has none. */
function piecesOf(letters, vocabulary) {
  if (letters.length > LONGEST) return null;
  const found = [];
  for (let start = 0, end; start < letters.length; start = end) {
    for (end = letters.length; end > start; end -= 1) {
      const piece = (start ? "##" : "") + letters.slice(start, end).join("");
      if (vocabulary.has(piece)) {
        found.push(vocabulary.get(piece));
        break;
      }
    }
    if (end === start) return null;
  }
  return found;
}
