/**
 * From a CSV file to an answer in a browser, with real NATS, PEFT and vLLM: nothing is typed into a terminal but `loraline console`. The
 * gateway is one of several, as in a cluster, so that it can be killed and nothing else. Pictures of docs are made here, with
 * `LORALINE_PICTURES=docs/images`.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { inboxPrefixOf } from "@loraline/contracts";
import { type Page, startBrowser } from "@loraline/testkit/browser";
import { expect, inject, it } from "vitest";
import { base, clientOf, loraline, root, sampleRows, scratchDir } from "../line-under-test.ts";
import { createServices } from "../services-under-test.ts";

const at = inject("line");
const minute = 60_000;
const pictures = join(root, process.env["LORALINE_PICTURES"] ?? ".cache/console-pictures/real");
const neighbour = { tenant: "neighbour", key: "ll-of-the-neighbour-of-this-test-0123456789" };

const quoted = (text: string): string => `"${text.replaceAll('"', '""')}"`;

/** A picture as small as docs want it. */
async function picture(page: Page, name: string): Promise<void> {
  const devtools = await page.context().newCDPSession(page);
  const { data } = await devtools.send("Page.captureScreenshot", { format: "webp", quality: 75 });
  await devtools.detach();
  await mkdir(pictures, { recursive: true });
  await writeFile(join(pictures, `console-${name}.webp`), Buffer.from(data, "base64"));
}

it("a CSV file becomes an adapter that answers, watched by a page that outlives kill -9 of its gateway and a reload", async () => {
  await using scratch = await scratchDir();
  const kept = async (name: string): Promise<string> => (await readFile(join(at.stateDir, name), "utf8")).trim();
  await using services = await createServices({
    dir: scratch.path,
    natsUrl: () => at.natsUrl,
    env: {
      NATS_USER: "gateway",
      NATS_INBOX_PREFIX: inboxPrefixOf("gateway"),
      NATS_PASS: at.natsAuth["gateway"] ?? "",
      LORALINE_SECRET: await kept("secret"),
      ENGINE_API_KEY: await kept("engine-key"),
      LORALINE_SPANS_DIR: join(at.stateDir, "traces"),
      REPLICA_HOSTS: "loopback",
      BOOTSTRAP_TENANT: neighbour.tenant,
      BOOTSTRAP_API_KEY: neighbour.key,
    },
  });
  const gateway = await services.start("gateway");
  const { code, out } = await loraline({ ...at, url: gateway.url }, ["console"]);
  expect(code).toBe(0);
  await using browser = await startBrowser();
  const page = await browser.newPage({ viewport: { width: 1280, height: 860 }, locale: "en" });
  const faults: string[] = [];
  page.on("pageerror", (error) => faults.push(error.message));
  await page.goto(/\S+#link=\S+/.exec(out)?.[0] ?? "");
  const startedAt = performance.now();
  await page.getByRole("link", { name: "New run" }).first().click();

  const rows = (await sampleRows(32)).map(({ instruction, output }) => `${quoted(instruction)},${quoted(output)}\n`);
  const csv = `question,answer\n${rows.join("")}"Who is the queen?",\n`;
  await page.locator("input[type=file]").setInputFiles({ name: "Court lady.csv", mimeType: "text/csv", buffer: Buffer.from(csv) });
  await page.getByText("32 usable records of 33 rows").waitFor({ timeout: 3 * minute });
  await page.getByText("1 row cannot be used").waitFor();
  await page.getByText("Line 34", { exact: true }).waitFor();
  await page.getByText("What to do: Write the answer, or remove the row.").waitFor();
  expect(await page.locator("mark").count(), "what is learned is coloured").toBeGreaterThan(0);
  expect(await page.getByLabel("Name of the adapter").inputValue()).toBe("court-lady");
  await picture(page, "new-run");
  // Each of so few rows has to teach more.
  await page.getByText("More settings").click();
  await page.getByLabel("Learning rate").fill("0.002");
  const start = page.getByRole("button", { name: "Start the run" });
  await expect.poll(() => start.isEnabled(), { timeout: 10 * minute }).toBe(true);
  await start.click();
  await page.getByRole("heading", { name: "Run for court-lady" }).waitFor();
  const address = page.url();

  await page.getByText(/^[1-9]\d* \/ \d+$/).waitFor({ timeout: 10 * minute });
  await gateway.kill();
  await page.getByRole("alert").getByText("The connection is lost.").waitFor();
  await gateway.spawn();
  await expect.poll(() => page.getByText("The connection is lost.").count(), { timeout: 3 * minute }).toBe(0);
  await page.reload();
  await page.getByText("answers", { exact: true }).waitFor({ timeout: 10 * minute });
  await page.getByText(/The held-out loss is .* lower than the base's/).waitFor();
  const { data: steps } = await clientOf(at).getRunMetrics({ run_id: new URL(address).pathname.split("/").at(-1) ?? "" });
  const trained = steps.filter(({ train_loss: loss }) => loss !== null).length;
  await page.getByRole("img", { name: new RegExp(`^Loss by step: ${trained} points`) }).waitFor();

  await page.getByRole("link", { name: "Try it in the playground" }).click();
  await page.getByLabel("Your question").fill("Who are you?");
  await page.getByRole("button", { name: "Ask" }).click();
  await page
    .getByText(/tokens? in /)
    .first()
    .waitFor({ timeout: 10 * minute });
  const seconds = Math.round((performance.now() - startedAt) / 1000);
  console.log(`console: ${seconds} s from the open page to the own adapter's answer`);
  await expect.poll(() => page.getByText(/tokens? in /).count(), { timeout: 3 * minute }).toBe(2);
  const [adapter, plain] = await page.locator(".answer").allTextContents();
  expect(adapter, `the adapter says something else than ${base}`).not.toBe(plain);
  await picture(page, "playground");

  await page.goto(address);
  await page.getByRole("img", { name: /^Loss/ }).waitFor();
  await page.getByText("proven").first().waitFor();
  await picture(page, "run");
  await page.getByRole("link", { name: "Run again with changes" }).click();
  await page.getByText("More settings").click();
  await page.getByLabel("Name of the adapter").fill("too-eager");
  await page.getByLabel("Learning rate").fill("10");
  await page.getByLabel("Most steps").fill("2");
  await page.getByRole("button", { name: "Start the run" }).click();
  await page.getByRole("heading", { name: "Run for too-eager" }).waitFor();
  await page.getByRole("heading", { name: "Why it failed" }).waitFor({ timeout: 10 * minute });
  await page.getByText("NOT_BETTER_THAN_BASE").waitFor();
  await page.getByText("What to do: Use more or better data, fewer epochs or a lower learning rate").waitFor();

  await using elsewhere = await browser.newContext({ locale: "en" });
  const theirs = await elsewhere.newPage();
  await theirs.goto(address);
  await theirs.getByLabel("API key").fill(neighbour.key);
  await theirs.getByRole("button", { name: "Sign in" }).click();
  await theirs.getByText("No such run").waitFor();
  expect(await theirs.locator("body").textContent()).not.toContain("court-lady");
  expect(faults).toEqual([]);
});
