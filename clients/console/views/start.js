// The page without a session: choose a profile, give a name if you like, say the first thing or not.

import { el, setText, show } from "./dom.js";

export class StartView {
  /**
   * @param {object} options
   * @param {() => Promise<{profiles: object[]}>} options.loadProfiles
   * @param {(request: {profileId: string, name: string, message: string}) => Promise<void>} options.create
   * @param {() => void} options.showMenu
   */
  constructor({ loadProfiles, create, showMenu }) {
    this.loadProfiles = loadProfiles;
    this.create = create;
    this.profiles = el(
      "fieldset",
      { class: "profiles" },
      el("legend", { text: "Profile" }),
      el("p", { class: "quiet", text: "Loading …" }),
    );
    this.message = el("textarea", {
      rows: "3",
      id: "first-message",
      placeholder: "What is the agent to do? You may also say it later.",
    });
    this.message.addEventListener("keydown", (event) => this.pressed(event));
    this.name = el("input", {
      type: "text",
      id: "session-name",
      maxlength: "200",
      placeholder: "Taken from the first message",
    });
    this.trouble = el("p", { class: "trouble", role: "alert", hidden: true });
    this.go = el("button", { class: "primary", type: "submit", text: "Create session", disabled: true });
    const form = el(
      "form",
      { class: "start" },
      el("h1", { text: "New session" }),
      this.profiles,
      el("label", { for: "first-message", text: "First message" }),
      this.message,
      el("label", { for: "session-name" }, "Name ", el("span", { class: "quiet", text: "optional" })),
      this.name,
      this.trouble,
      el("div", { class: "actions" }, this.go),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    const menu = el("button", {
      class: "plain menu",
      type: "button",
      text: "Sessions",
      on: { click: showMenu },
    });
    this.element = el("main", { class: "start-page" }, menu, form);
    this.fill();
  }

  focus() {
    this.message.focus();
  }

  async fill() {
    try {
      const { profiles } = await this.loadProfiles();
      this.profiles.replaceChildren(
        this.profiles.firstChild,
        ...profiles.map((profile, at) => choice(profile, at === 0)),
      );
      this.go.disabled = profiles.length === 0;
      if (profiles.length === 0) this.complain("The server has no profile, so no session can be made.");
    } catch (problem) {
      this.profiles.lastChild.textContent = "The profiles could not be loaded.";
      this.complain(problem.message);
    }
  }

  pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.submit();
  }

  async submit() {
    const profileId = this.profiles.querySelector("input:checked")?.value;
    if (!profileId || this.go.disabled) return;
    this.go.disabled = true;
    setText(this.go, "Creating");
    try {
      await this.create({ profileId, name: this.name.value.trim(), message: this.message.value });
    } catch (problem) {
      this.complain(problem.message);
    }
    this.go.disabled = false;
    setText(this.go, "Create session");
  }

  complain(sentence) {
    setText(this.trouble, sentence);
    show(this.trouble, true);
  }
}

function choice(profile, isChecked) {
  return el(
    "label",
    { class: "profile" },
    el("input", { type: "radio", name: "profile", value: profile.profileId, checked: isChecked }),
    el("span", { class: "profile-name", text: profile.name }),
    el("span", { class: "quiet", text: profile.description || profile.architecture }),
  );
}
