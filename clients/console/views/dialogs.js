// Questions to the person at the keyboard, as modal dialogs that the browser keeps the focus in.

import { el } from "./dom.js";

/** Ask before something that cannot be undone; resolves to whether it shall be done. */
export async function confirmDialog({ title, text, action }) {
  const answer = await ask(title, [el("p", { text })], { action, isDanger: true });
  return answer === "do";
}

/** Ask for a name; resolves to it, or to null when the person changed their mind. */
export async function renameDialog(name) {
  const input = el("input", {
    type: "text",
    value: name,
    maxlength: "200",
    "aria-label": "Name",
    autofocus: true,
  });
  const answer = await ask("Rename the session", [input], { action: "Rename" });
  return answer === "do" ? input.value.trim() : null;
}

/** Ask for a port of the sandbox; resolves to its number, or to null. */
export async function portDialog() {
  const input = el("input", {
    type: "number",
    min: "1",
    max: "65535",
    required: true,
    placeholder: "8000",
    "aria-label": "Port",
    autofocus: true,
  });
  const text = "What listens there inside the sandbox is shown in a new tab, for an hour.";
  const answer = await ask("Open a port", [el("p", { text }), input], { action: "Open" });
  return answer === "do" ? Number(input.value) : null;
}

function ask(title, content, { action, isDanger = false }) {
  const cancel = el("button", { class: "button", type: "button", text: "Cancel", autofocus: isDanger });
  const go = el("button", { class: isDanger ? "primary danger" : "primary", type: "submit", text: action });
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", { text: title }),
    ...content,
    el("div", { class: "actions" }, cancel, go),
  );
  const dialog = el("dialog", { "aria-label": title }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    cancel.addEventListener("click", () => dialog.close("cancel"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close("do");
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    dialog.showModal();
  });
}
