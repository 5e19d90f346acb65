// Asked when the server refuses what it was shown: the token that it printed when it started.

import { el } from "./dom.js";

/** @param {{wasRefused: boolean, onToken: (token: string) => void}} options */
export function signInView({ wasRefused, onToken }) {
  const input = el("input", {
    type: "password",
    id: "token",
    autocomplete: "off",
    required: true,
    autofocus: true,
  });
  const form = el(
    "form",
    { class: "start" },
    el("h1", { text: "agent-runtime" }),
    wasRefused &&
      el("p", { class: "trouble", role: "alert", text: "The server does not accept this token." }),
    el("label", { for: "token", text: "Access token" }),
    input,
    el("p", {
      class: "quiet",
      text: "The server prints it when it starts, together with a link that holds it.",
    }),
    el("div", { class: "actions" }, el("button", { class: "primary", type: "submit", text: "Connect" })),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.value.trim()) onToken(input.value.trim());
  });
  return el("main", { class: "start-page" }, form);
}
