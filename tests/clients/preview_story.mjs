// A page out of a sandbox in a real Chromium: node preview_story.mjs <base url> <token> <session>
// <address> <port>.
// The console is open in the same browser. The page does what it can to read the console's token and to
// call the API; what came of each attempt is in its own text. The last line printed is that, in JSON.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [base, token, session, address, port] = process.argv.slice(2);
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
const QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"];

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [...FLAGS, ...QUIET],
});
try {
  const context = await browser.newContext();
  const person = await context.newPage();
  person.setDefaultTimeout(15_000);
  await person.goto(`${base}/#token=${encodeURIComponent(token)}`);
  await person.waitForSelector(".connection:has-text('Connected')");
  assert.ok(await person.evaluate(() => sessionStorage.length), "the console keeps its token here");

  const attacker = await context.newPage();
  const attempts = await attempted(attacker);
  const inTheConsolesTab = await attempted(person);
  await person.goto(`${base}/`);
  await person.waitForSelector(".connection:has-text('Connected')");
  const opened = await openedByAPerson(context, person);
  console.log(JSON.stringify({ attempts, inTheConsolesTab, opened }));
} catch (error) {
  console.error(error.stack);
  process.exitCode = 1;
} finally {
  await browser.close();
}

/** What a person sees who opens the port in the console. */
async function openedByAPerson(context, page) {
  await page.goto(`${base}/#/s/${session}`);
  await page.click("text=Open port");
  await page.fill("dialog input", port);
  const [shown] = await Promise.all([context.waitForEvent("page"), page.click("dialog button[type=submit]")]);
  return shown.textContent("#said");
}

/** What came of all that the page tried. */
async function attempted(page) {
  const target = new URL("attack.html", address);
  target.hash = JSON.stringify({ base, session });
  await page.goto(target.href);
  await page.waitForSelector("#result", { state: "attached", timeout: 20_000 });
  return JSON.parse(await page.textContent("#result"));
}
