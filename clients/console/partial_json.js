// Reads JSON text that is still being written, for display: closes what is open and parses that.

/**
 * The value so far of a growing JSON object; an empty object while nothing can be told yet.
 * @param {string} text
 */
export function readPartialJson(text) {
  for (const candidate of candidates(text)) {
    try {
      const value = JSON.parse(candidate);
      if (value && typeof value === "object" && !Array.isArray(value)) return value;
    } catch {
      // the next candidate is shorter
    }
  }
  return {};
}

function* candidates(text) {
  yield text;
  const { inString, closers, lastComma } = scan(text);
  const tail = closers.join("");
  // A string cut inside an escape loses that escape; at most `\uXXX` are five characters of it.
  if (inString) for (let cut = 0; cut <= 5; cut++) yield `${text.slice(0, text.length - cut)}"${tail}`;
  else yield text + tail;
  if (lastComma) yield text.slice(0, lastComma.at) + lastComma.closers.join("");
}

function scan(text) {
  const closers = [];
  let inString = false;
  let lastComma = null;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (inString) {
      if (character === "\\") at++;
      else if (character === '"') inString = false;
    } else if (character === '"') inString = true;
    else if (character === "{") closers.unshift("}");
    else if (character === "[") closers.unshift("]");
    else if (character === "}" || character === "]") closers.shift();
    else if (character === ",") lastComma = { at, closers: [...closers] };
  }
  return { inString, closers, lastComma };
}
