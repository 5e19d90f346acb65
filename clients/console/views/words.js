// How numbers, times and states are written for people. Pure.

export const PHASES = {
  dormant: { label: "Dormant", hint: "No sandbox is running. The next message wakes one." },
  waking: { label: "Waking", hint: "The sandbox is starting." },
  ready: { label: "Ready", hint: "The sandbox is up and waits for a message." },
  running: { label: "Running", hint: "The agent is at work." },
  waiting: { label: "Waiting", hint: "The agent waits for an answer." },
  stopping: { label: "Stopping", hint: "The sandbox is being stopped; files are saved first." },
  failed: { label: "Failed", hint: "The sandbox failed. The next message tries again." },
};

export const TOOL_STATUS = {
  pending: "pending",
  running: "running",
  success: "done",
  error: "failed",
  denied: "denied",
  cancelled: "cancelled",
};

export function duration(ms) {
  if (ms < 950) return `${Math.max(1, Math.round(ms))} ms`;
  if (ms < 59_500) return `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

export function count(number) {
  if (number < 1000) return String(number);
  if (number < 999_500) return `${(number / 1000).toFixed(number < 9950 ? 1 : 0)}k`;
  return `${(number / 1_000_000).toFixed(1)}M`;
}

export function bytes(size) {
  if (size < 1024) return `${size} B`;
  if (size < 1024 * 1024) return `${(size / 1024).toFixed(size < 10_240 ? 1 : 0)} KB`;
  return `${(size / 1024 / 1024).toFixed(1)} MB`;
}

export function money(usd) {
  return `$${usd.toFixed(usd < 0.1 ? 4 : 2)}`;
}

export function plural(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** How long ago, coarsely; `now` in ms. */
export function ago(iso, now) {
  const seconds = Math.max(0, (now - Date.parse(iso)) / 1000);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  if (seconds < 86_400 * 30) return plural(Math.floor(seconds / 86_400), "day") + " ago";
  return new Date(iso).toLocaleDateString();
}

/** All tokens that went in and out, as far as the agent reported them; null when it reported none. */
export function tokens(usage) {
  const numbers = ["inputTokens", "outputTokens", "cacheReadTokens", "cacheWriteTokens"]
    .map((name) => usage?.[name])
    .filter((value) => value != null);
  return numbers.length ? numbers.reduce((sum, value) => sum + value, 0) : null;
}

/** What a session is called when nobody named it. */
export function sessionTitle(session) {
  return session.name || `Session ${session.sessionId.slice(-6)}`;
}

/** A message's text; pictures are left out. */
export function contentText(content) {
  if (typeof content === "string") return content;
  return content
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("\n");
}
