import assert from "node:assert/strict";
import { test } from "node:test";

import { pieces } from "../../../clients/console/markdown.js";

const ALLOWED_TAGS = new Set(
  "p h2 h3 h4 h5 h6 hr blockquote pre code ul ol li div table thead tbody tr th td span strong em del a br".split(
    " ",
  ),
);
const ALLOWED_ATTRIBUTES = {
  a: ["href", "target", "rel"],
  ol: ["start"],
  pre: ["data-language", "class"],
  li: ["class"],
  div: ["class"],
};

const trees = (text) => pieces(text).map((piece) => piece.tree());
const text = (tree) => (typeof tree === "string" ? tree : tree.children.map(text).join(""));
const all = (tree) => (typeof tree === "string" ? [] : [tree, ...tree.children.flatMap(all)]);
const elements = (source) => trees(source).flatMap(all);

const HOSTILE = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "a <b onclick=alert(1)>b</b>",
  "<svg/onload=alert(1)>",
  "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
  "<!-- --><style>*{display:none}</style>",
  "[x](javascript:alert(1))",
  "[x](JaVaScRiPt:alert(1))",
  "[x](java&#115;cript:alert(1))",
  "[x](&#x6A;avascript:alert(1))",
  "[x](\u0001javascript:alert(1))",
  "[x](java\tscript:alert(1))",
  "[x](vbscript:msgbox(1))",
  "[x](data:text/html,<script>alert(1)</script>)",
  "[x](file:///etc/passwd)",
  "[x](//evil.example/path)",
  "![x](javascript:alert(1))",
  '![x](https://evil.example/a.png "onload=alert(1)")',
  "<javascript:alert(1)>",
  "[x]: javascript:alert(1)\n\n[x]",
  '[x](https://a.example "\\" onmouseover=alert(1)")',
  "```html\n<script>alert(1)</script>\n```",
  '```"><script>alert(1)</script>\nx\n```',
  "| <script>alert(1)</script> |\n|-|\n| <img src=x onerror=alert(1)> |",
  "- [x] <input onfocus=alert(1) autofocus>",
  "[x](https://a.example/?q=<script>)",
];

test("whatever an agent writes, only harmless elements, attributes and links come of it", () => {
  for (const source of HOSTILE) {
    for (const { tag, attributes } of elements(source)) {
      assert.ok(ALLOWED_TAGS.has(tag), `${tag} of ${source}`);
      for (const name of Object.keys(attributes))
        assert.ok(ALLOWED_ATTRIBUTES[tag]?.includes(name), `${tag} ${name} of ${source}`);
      if (tag === "a") assert.match(attributes.href, /^(https?:\/\/|mailto:)/i, source);
    }
  }
});

test("HTML is shown as the text that it is", () => {
  assert.equal(trees("a <b>bold</b> word").map(text).join(""), "a <b>bold</b> word");
  assert.equal(trees("<script>alert(1)</script>").map(text).join(""), "<script>alert(1)</script>");
});

test("a picture becomes a link, so that nothing is fetched by looking", () => {
  const found = elements("![chart](https://example.org/chart.png)");
  assert.deepEqual(
    found.map(({ tag }) => tag),
    ["p", "a"],
  );
});

test("links leave the page without telling where from", () => {
  const [, link] = elements("[docs](https://example.org/a?b=1&amp;c=2)");
  assert.deepEqual(link.attributes, {
    href: "https://example.org/a?b=1&c=2",
    target: "_blank",
    rel: "noopener noreferrer nofollow",
  });
});

test("ordinary Markdown looks as its author meant it", () => {
  const source =
    "# Plan\n\n1. **Write** `a.py`\n2. run\n\n> quoted\n\n```python\nprint(1)\n```\n\n|a|b|\n|-|-|\n|1|2|\n\n- [x] done\n\n---\n\n~~old~~ &lt;tag&gt;";
  const tags = new Set(elements(source).map(({ tag }) => tag));
  for (const tag of [
    "h2",
    "ol",
    "li",
    "strong",
    "code",
    "blockquote",
    "pre",
    "table",
    "th",
    "td",
    "ul",
    "hr",
    "del",
  ])
    assert.ok(tags.has(tag), tag);
  assert.ok(trees(source).map(text).join("\n").includes("<tag>"));
  assert.equal(elements("```python x\n1\n```")[0].attributes["data-language"], "python");
});

test("while a text grows, the pieces before its end stay the same", () => {
  const before = pieces("# Head\n\nfirst paragraph\n\nsecond par");
  const after = pieces("# Head\n\nfirst paragraph\n\nsecond paragraph");
  assert.deepEqual(after.map(({ raw }) => raw).slice(0, 2), before.map(({ raw }) => raw).slice(0, 2));
  assert.notEqual(after.at(-1).raw, before.at(-1).raw);
});

test("no text, however it is made, takes long or breaks the page", () => {
  const units = [
    ">",
    "[",
    "*a ",
    "_",
    "<",
    "[a](",
    "**a*",
    "a_b_",
    "a**b**",
    "`a``",
    "~a~~",
    "![",
    "1. ",
    "- ",
    "\\",
    "|",
    "&",
    "http://a.",
    "a@",
    "  - ",
    "<!--",
  ];
  for (const unit of units) {
    for (const size of [1000, 50_000]) {
      const source = unit.repeat(Math.floor(size / unit.length));
      const before = performance.now();
      const shown = trees(source).flatMap(all);
      assert.ok(performance.now() - before < 3000, `${JSON.stringify(unit)} took too long`);
      assert.ok(shown.every(({ tag }) => ALLOWED_TAGS.has(tag)));
    }
  }
  assert.equal(trees("x".repeat(500_000)).map(text).join("").length, 500_000);
});
