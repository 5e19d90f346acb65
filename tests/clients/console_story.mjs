// The console in a real Chromium: node console_story.mjs <base url> <token> [<folder for pictures>].
// A person signs in, starts a session, watches a turn, reloads in the middle of it, reads a file,
// interrupts, deletes. The last line printed is the result in JSON; it exits with 1 and a sentence
// where something is not as it should be.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [base, token, pictures] = process.argv.slice(2);
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
const QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"];
const STEP_MS = 15_000;
const TURN_MS = 40_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [...FLAGS, ...QUIET],
});
const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
const page = await context.newPage();
page.setDefaultTimeout(STEP_MS);
const wrong = [];
page.on("pageerror", (error) => wrong.push(`an error in the page: ${error.message}`));
page.on(
  "console",
  (message) => /Content Security Policy/i.test(message.text()) && wrong.push(message.text()),
);
page.on(
  "request",
  (request) =>
    request.url().startsWith(base) ||
    request.url().startsWith("blob:") ||
    wrong.push(`asked elsewhere: ${request.url()}`),
);

const steps = () => [
  ...[signIn, createSession, watchTurn, reloadInMidTurn, nothingMissingNothingDoubled],
  ...[readFile, reloadInMidText, hostileText, interrupt, comeBackOnline, remove],
];
const result = {};
try {
  for (const step of steps()) {
    const before = Date.now();
    await step();
    result[step.name] = Date.now() - before;
    if (pictures) await page.screenshot({ path: `${pictures}/${step.name}.png` });
    assert.deepEqual(wrong, [], `in ${step.name}`);
  }
  console.log(JSON.stringify(result));
} catch (error) {
  if (pictures) await page.screenshot({ path: `${pictures}/failed.png` });
  console.error(`${Object.keys(result).at(-1) ?? "nothing"} was the last step that worked.\n${error.stack}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}

async function signIn() {
  await page.goto(`${base}/`);
  await page.fill("#token", "wrong");
  await page.click("text=Connect");
  await page.waitForSelector("text=does not accept this token");
  await page.goto(`${base}/#token=${encodeURIComponent(token)}`);
  await page.waitForSelector(".profile");
  assert.equal(new URL(page.url()).hash, "#/", "the token stays out of the address");
  await page.waitForSelector(".connection:has-text('Connected')");
}

async function createSession() {
  await page.fill("#session-name", "Browser story");
  await page.click("text=Create session");
  await page.waitForSelector("text=Nothing said yet");
  await page.waitForSelector(".session-item[aria-current]:has-text('Browser story')");
  assert.match(new URL(page.url()).hash, /^#\/s\/[^/]+$/);
}

async function watchTurn() {
  const starting = await shownFromNowOn(".progress"); // the sandbox starts, and that is told
  await say("Show it [[script:demo]]");
  await starting();
  await page.waitForSelector(".user-message:has-text('Show it')");
  await page.waitForSelector(".thinking");
  await page.waitForSelector(".assistant-text .markdown p");
  await page.waitForSelector(".tool[data-status=success]");
}

async function reloadInMidTurn() {
  await page.reload();
  await page.waitForSelector(".tool[data-status=success]");
  await page.waitForSelector(".subagent", { timeout: TURN_MS });
  await rests();
  await page.waitForSelector(".subagent[data-status=success]");
}

async function nothingMissingNothingDoubled() {
  const live = await seen(page);
  const fresh = await context.newPage();
  const session = new URL(page.url()).hash.replace("#/s/", "");
  await fresh.goto(`${base}/#token=${encodeURIComponent(token)}&session=${session}`);
  await fresh.waitForSelector(".subagent[data-status=success]");
  assert.deepEqual(live, await seen(fresh), "a page that was there and one that comes later show the same");
  await fresh.close();
  assert.deepEqual(live.blocks, [...new Set(live.blocks)], "no block is shown twice");
  assert.deepEqual(live.blocks, await expectedBlocks(session), "the blocks of the session, in order");
}

async function readFile() {
  await page.click(".file:has-text('life.py') >> nth=0");
  await page.waitForSelector(".numbered .text:has-text('def step')");
  assert.match(await page.textContent(".numbers"), /^1\n2\n3\n/);
  await page.keyboard.press("Escape");
  await page.waitForSelector(".viewer", { state: "hidden" });
}

async function reloadInMidText() {
  await say("[[script:slow n=120 delay=0.05]]");
  await page.waitForSelector(".assistant-text[data-state=streaming]:has-text('word00010')");
  await page.reload();
  await page.waitForSelector(".assistant-text[data-state=streaming]:has-text('word00010')");
  await page.waitForSelector(".assistant-text[data-state=complete]:has-text('word00119')");
  const words = Array.from({ length: 120 }, (_, at) => `word${String(at).padStart(5, "0")}`);
  assert.equal(await page.locator(".assistant-text .markdown").last().textContent(), words.join(" "));
  await rests();
}

async function hostileText() {
  await say(
    `<img src=x onerror="document.title='broken in'"> <script>document.title='broken in'</script> [[script:hello]]`,
  );
  await page.waitForSelector(".assistant-text:has-text('You wrote: “<img src=x onerror')");
  await rests();
  assert.equal(await page.locator(".conversation img, .conversation script").count(), 0);
  assert.doesNotMatch(await page.title(), /broken in/);
}

async function interrupt() {
  await say("[[script:slow n=5000 delay=0.02]]");
  await page.waitForSelector(".assistant-text[data-state=streaming]:has-text('word00010')");
  await say("And then this [[script:text]]");
  await page.waitForSelector(".queue:has-text('And then this')");
  await page.keyboard.press("Escape");
  await page.waitForSelector(".assistant-text[data-state=aborted] > .quiet:visible");
  await page.waitForSelector(".assistant-text:has-text('This is plain text')");
  await page.waitForSelector(".queue", { state: "hidden" });
  await rests();
}

async function comeBackOnline() {
  const lost = await shownFromNowOn(".connection", "Connection lost");
  const warned = await shownFromNowOn(".hint", "Not connected");
  await page.evaluate(() => dispatchEvent(new Event("offline"))); // what a browser tells when its network goes
  await Promise.all([lost(), warned()]);
  await page.waitForSelector(".connection:has-text('Connected')");
  await say("Still there? [[script:text]]");
  await page.waitForSelector(".user-message:has-text('Still there?')");
  await rests();
}

async function remove() {
  const mine = page.locator(".session-item:has-text('Browser story')");
  const before = await mine.count();
  await page.click(".session-head .danger");
  await page.keyboard.press("Escape");
  assert.equal(await mine.count(), before, "Esc deletes nothing");
  await page.click(".session-head .danger");
  await page.click("text=Delete for ever");
  await page.waitForSelector(".profile");
  assert.equal(await mine.count(), before - 1);
}

async function say(text) {
  await page.fill("#message", text);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#message").value === "");
}

async function rests() {
  await page.waitForSelector(".session-head .phase[data-phase=ready]", { timeout: TURN_MS });
}

/** Notices from now on what is shown for a moment only, however late anybody asks; returns a wait for it. */
async function shownFromNowOn(selector, text = "") {
  const noticed = await page.evaluateHandle(
    ([selector, text]) => ({
      shown: new Promise((resolve) => {
        const isIt = (element) => element.checkVisibility() && element.textContent.includes(text);
        const look = () => [...document.querySelectorAll(selector)].some(isIt) && resolve();
        const options = { subtree: true, childList: true, characterData: true, attributes: true };
        new MutationObserver(look).observe(document.body, options);
        look();
      }),
    }),
    [selector, text],
  );
  const late = () => new Error(`${selector} ${text}: not shown within ${STEP_MS} ms`);
  return () =>
    Promise.race([
      noticed.evaluate(({ shown }) => shown),
      new Promise((_, reject) => setTimeout(() => reject(late()), STEP_MS).unref()),
    ]);
}

/** Everything that a page shows of the conversation, with all subagents unfolded. */
async function seen(where) {
  for (const fold of await where.locator(".subagent > .fold-head > .fold[aria-expanded=false]").all())
    await fold.click();
  await where.waitForFunction(() => !document.querySelector(".older:disabled"));
  return where.evaluate(() => ({
    blocks: [...document.querySelectorAll("[data-block]")].map((element) => element.dataset.block),
    text: [...document.querySelectorAll(".blocks")].map((element) => element.textContent),
    files: [...document.querySelectorAll(".file")].map((element) => element.title),
  }));
}

/** What has a view of its own, in the order of the page: a subagent's blocks stand inside of it. */
async function expectedBlocks(session) {
  const answer = await fetch(`${base}/api/sessions/${session}`, {
    headers: { Authorization: `Bearer ${token}` },
  });
  const { blocks } = await answer.json();
  const started = new Set(blocks.filter(({ type }) => type === "subagent").map(({ toolUseId }) => toolUseId));
  const isShown = ({ type, toolUseId }) =>
    type !== "tool_result" && !(type === "tool_use" && started.has(toolUseId));
  const inside = (conversation) =>
    blocks
      .filter((block) => block.conversationId === conversation && isShown(block))
      .flatMap((block) => [block.id, ...(block.type === "subagent" ? inside(block.subagentId) : [])]);
  return inside("main");
}
