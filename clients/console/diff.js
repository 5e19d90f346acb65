// A replaced piece of text as lines of a diff. Pure. The agent says what it replaces by what, so the
// lines that both sides share at their ends are context and everything between is old, then new.

const CONTEXT_LINES = 3;

/**
 * @param {string} before
 * @param {string} after
 * @returns {{kind: "same"|"old"|"new", text: string}[]}
 */
export function diffLines(before, after) {
  const old = before === "" ? [] : before.split("\n");
  const young = after === "" ? [] : after.split("\n");
  const shorter = Math.min(old.length, young.length);
  let head = 0;
  while (head < shorter && old[head] === young[head]) head++;
  let tail = 0;
  while (tail < shorter - head && old[old.length - 1 - tail] === young[young.length - 1 - tail]) tail++;
  const lines = (kind, texts) => texts.map((text) => ({ kind, text }));
  return [
    ...lines("same", old.slice(Math.max(0, head - CONTEXT_LINES), head)),
    ...lines("old", old.slice(head, old.length - tail)),
    ...lines("new", young.slice(head, young.length - tail)),
    ...lines("same", old.slice(old.length - tail, old.length - tail + CONTEXT_LINES)),
  ];
}
