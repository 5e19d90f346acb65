// Markdown of an agent, which is hostile input, as a plain tree of allowed elements. `marked` only cuts
// the text into tokens; this file decides what each becomes, and `views/dom.js` makes nodes of the tree
// with createElement and text nodes. No HTML string is made anywhere, so there is nothing to sanitise:
// HTML in the text is shown as text, pictures become links, links are http(s) or mailto.

import { Lexer } from "./vendor/marked.esm.js";

/** @typedef {string | {tag: string, attributes: object, children: Tree[]}} Tree */

const MAX_CHARACTERS = 100_000;
const MAX_DEPTH = 40;
const MAX_PARAGRAPH = 4000;
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

/** marked's search for emphasis is quadratic in a paragraph's length; an overlong one stays plain. */
class BoundedLexer extends Lexer {
  inlineTokens(source, tokens = []) {
    if (source.length <= MAX_PARAGRAPH) return super.inlineTokens(source, tokens);
    tokens.push({ type: "text", raw: source, text: source });
    return tokens;
  }
}

/**
 * The top-level pieces of a text: `raw` tells whether a piece is the same as before, so that while a
 * text grows only its last pieces are made again; `tree()` is what it looks like.
 * @returns {{raw: string, tree: () => Tree}[]}
 */
export function pieces(text) {
  if (text.length > MAX_CHARACTERS) return [plain(text)];
  try {
    const tokens = new BoundedLexer({ gfm: true }).lex(text);
    return tokens
      .filter((token) => token.type !== "space" && token.type !== "def")
      .map((token) => ({ raw: token.raw, tree: () => block(token, 0) }));
  } catch {
    return [plain(text)]; // nested too deeply for the lexer
  }
}

function plain(text) {
  return { raw: text, tree: () => node("pre", { class: "plain" }, [text]) };
}

function node(tag, attributes, children) {
  return { tag, attributes, children };
}

function blocks(tokens, depth) {
  return (tokens ?? []).filter((token) => token.type !== "space").map((token) => block(token, depth + 1));
}

function block(token, depth) {
  if (depth > MAX_DEPTH) return token.raw;
  return (BLOCKS[token.type] ?? inline)(token, depth);
}

const BLOCKS = {
  paragraph: (token, depth) => node("p", {}, inlines(token.tokens, depth)),
  heading: (token, depth) => node(`h${Math.min(token.depth + 1, 6)}`, {}, inlines(token.tokens, depth)),
  hr: () => node("hr", {}, []),
  blockquote: (token, depth) => node("blockquote", {}, blocks(token.tokens, depth)),
  code: (token) => node("pre", { "data-language": firstWord(token.lang) }, [node("code", {}, [token.text])]),
  html: (token) => node("p", {}, [token.raw.trimEnd()]),
  def: () => "",
  list: (token, depth) =>
    node(
      token.ordered ? "ol" : "ul",
      token.ordered && token.start > 1 ? { start: String(token.start) } : {},
      token.items.map((item) => listItem(item, depth)),
    ),
  table: (token, depth) =>
    node("div", { class: "table" }, [
      node("table", {}, [
        node("thead", {}, [row("th", token.header, depth)]),
        node(
          "tbody",
          {},
          token.rows.map((cells) => row("td", cells, depth)),
        ),
      ]),
    ]),
  text: (token, depth) =>
    token.tokens ? node("span", {}, inlines(token.tokens, depth)) : decode(token.text),
};

function listItem(item, depth) {
  const mark = item.task ? [item.checked ? "☑ " : "☐ "] : [];
  const tokens = item.tokens.filter((token) => token.type !== "checkbox");
  return node("li", item.task ? { class: "task" } : {}, [...mark, ...blocks(tokens, depth)]);
}

function row(tag, cells, depth) {
  return node(
    "tr",
    {},
    cells.map((cell) => node(tag, {}, inlines(cell.tokens, depth))),
  );
}

function inlines(tokens, depth) {
  return (tokens ?? []).map((token) => inline(token, depth + 1));
}

function inline(token, depth) {
  if (depth > MAX_DEPTH) return token.raw;
  return (INLINES[token.type] ?? ((unknown) => unknown.raw))(token, depth);
}

const INLINES = {
  text: (token, depth) =>
    token.tokens ? node("span", {}, inlines(token.tokens, depth)) : decode(token.text),
  escape: (token) => token.text,
  html: (token) => token.raw,
  codespan: (token) => node("code", {}, [token.text]),
  br: () => node("br", {}, []),
  checkbox: () => "",
  strong: (token, depth) => node("strong", {}, inlines(token.tokens, depth)),
  em: (token, depth) => node("em", {}, inlines(token.tokens, depth)),
  del: (token, depth) => node("del", {}, inlines(token.tokens, depth)),
  link: (token, depth) => link(token.href, inlines(token.tokens, depth), token.raw),
  image: (token) => link(token.href, [`🖼 ${token.text || token.href}`], token.raw),
};

function link(href, children, raw) {
  const target = decode(href).trim();
  if (!SAFE_LINK.test(target)) return raw;
  return node("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
}

/** Character references as text; the few names that agents write, and numbers. */
function decode(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z]{2,4}));/gi, (all, decimal, hex, name) => {
    if (name) return ENTITIES[name.toLowerCase()] ?? all;
    const code = decimal ? Number(decimal) : Number.parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : all;
  });
}

function firstWord(language) {
  return (language ?? "").split(/\s/, 1)[0].slice(0, 30);
}
