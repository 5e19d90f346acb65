// The access token of this tab: taken out of the address bar, kept in the tab's session storage.

const KEY = "agent-runtime.token";

/**
 * Read `#token=...` (and `&session=...` beside it) off the address and leave a clean one behind.
 * @returns {string|null} the token that counts now
 */
export function takeToken() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get("token");
  if (given) {
    keepToken(given);
    const session = fragment.get("session");
    const place = session ? `#/s/${encodeURIComponent(session)}` : "#/";
    history.replaceState(null, "", location.pathname + location.search + place);
  }
  return sessionStorage.getItem(KEY);
}

export function keepToken(token) {
  sessionStorage.setItem(KEY, token);
}

export function forgetToken() {
  sessionStorage.removeItem(KEY);
}
