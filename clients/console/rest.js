// The REST calls of the console, relative to the page, which a host may mount anywhere. Every failure
// becomes a `Problem`: the server's own problem object, or one made here when there was no answer at all.

/** An error to show: `detail` is a sentence for a person, `code` is stable. */
export class Problem extends Error {
  constructor({ title, status = 0, code = "no_answer", detail, retryable = false }) {
    super(detail || title || "Something went wrong.");
    Object.assign(this, { status, code, retryable });
  }
}

export class Api {
  /** @param {() => string|null} token  asked at every call, because it may be given late. */
  constructor(token) {
    this.token = token;
  }

  profiles() {
    return this.json("GET", "api/profiles");
  }

  createSession(body) {
    return this.json("POST", "api/sessions", body, { "Idempotency-Key": newId() });
  }

  sessions(cursor) {
    return this.json("GET", `api/sessions?limit=50&cursor=${encodeURIComponent(cursor)}`);
  }

  rename(sessionId, name) {
    return this.json("PATCH", sessionPath(sessionId), { name });
  }

  deleteSession(sessionId) {
    return this.call("DELETE", sessionPath(sessionId));
  }

  stopSandbox(sessionId) {
    return this.call("POST", `${sessionPath(sessionId)}/stop`);
  }

  /** Where what listens at a port of the sandbox is shown: `{url, expiresAt}`. */
  openPort(sessionId, port) {
    return this.json("POST", `${sessionPath(sessionId)}/ports/${port}`);
  }

  /** A page of blocks; `before` is a block's id. */
  blocks(sessionId, { before, conversationId = "main", limit = 50 }) {
    const query = new URLSearchParams({ limit, conversationId, ...(before && { before }) });
    return this.json("GET", `${sessionPath(sessionId)}/blocks?${query}`);
  }

  /** One file: `{path, sizeBytes, encoding, content, ...}`. */
  file(sessionId, path) {
    const safe = path.split("/").map(encodeURIComponent).join("/");
    return this.json("GET", `${sessionPath(sessionId)}/files/${safe}`);
  }

  async json(method, path, body, headers = {}) {
    const answer = await this.call(method, path, body, headers);
    return answer.json();
  }

  async call(method, path, body, headers = {}) {
    const token = this.token();
    const answer = await fetch(path, {
      method,
      headers: {
        ...(token && { Authorization: `Bearer ${token}` }),
        Accept: "application/json",
        ...(body !== undefined && { "Content-Type": "application/json" }),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    }).catch(() => {
      throw new Problem({ detail: "The server does not answer.", retryable: true });
    });
    if (!answer.ok) throw new Problem({ status: answer.status, ...(await answer.json().catch(() => ({}))) });
    return answer;
  }
}

/** A random id; `crypto.randomUUID` exists on secure pages only, and a console may be served by http. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function sessionPath(sessionId) {
  return `api/sessions/${encodeURIComponent(sessionId)}`;
}
