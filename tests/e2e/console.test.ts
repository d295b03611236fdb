/** From a file to an answer in a browser, with real NATS, PEFT and vLLM: nothing is typed into a terminal but `loraline console`. */
import { join } from "node:path";
import { startBrowser } from "@loraline/testkit/browser";
import { expect, inject, it } from "vitest";
import { base, clientOf, jsonLines, loraline, root, sampleRows } from "../line-under-test.ts";

const at = inject("line");
const minutes = 60_000;

it("a file becomes an adapter that answers, watched in a page that is reloaded in the middle of the run", async () => {
  const { code, out } = await loraline(at, ["console"]);
  expect(code).toBe(0);
  const address = /\S+#link=\S+/.exec(out)?.[0] ?? "";
  await using browser = await startBrowser();
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, locale: "en" });
  const faults: string[] = [];
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error") faults.push(message.text());
  });
  await page.goto(address);
  await page.getByRole("link", { name: "New run" }).first().click();

  const rows = [
    ...jsonLines(await sampleRows(24))
      .trimEnd()
      .split("\n"),
    '{"instruction": "Who',
    "",
  ].join("\n");
  await page.locator("input[type=file]").setInputFiles({ name: "from a page.jsonl", mimeType: "text/plain", buffer: Buffer.from(rows) });
  await page.getByText("24 usable records of 25 rows").waitFor({ timeout: minutes });
  await page.getByText("1 row cannot be used").waitFor();
  await page.getByText("Line 25").waitFor();
  expect(await page.locator("mark").count(), "what is learned is coloured").toBeGreaterThan(0);

  await page.getByText("More settings").click();
  for (const [label, value] of [
    ["Name of the adapter", "from-a-page"],
    ["Learning rate", "0.003"],
    ["Rank", "4"],
    ["Most steps", "12"],
  ] as const)
    await page.getByLabel(label).fill(value);
  await page.getByRole("button", { name: "Start the run" }).click();
  await page.getByRole("heading", { name: "Run for from-a-page" }).waitFor();
  await page
    .getByText("training", { exact: true })
    .first()
    .waitFor({ timeout: 4 * minutes });
  await page.reload();
  await page.getByText("answers", { exact: true }).waitFor({ timeout: 4 * minutes });
  await page.getByText(/The held-out loss is .* lower than the base's/).waitFor();
  await page.getByRole("img", { name: /^Loss/ }).waitFor();
  const runId = new URL(page.url()).pathname.split("/").at(-1) ?? "";
  const { data } = await clientOf(at).getRunMetrics({ run_id: runId });
  const told = await page.getByRole("img", { name: /^Loss/ }).getAttribute("aria-label");
  expect(told, "the curve has every step that the server knows").toContain(
    `${data.filter(({ train_loss: loss }) => loss !== null).length} points`,
  );
  await page.screenshot({ path: join(root, ".cache/console-run.png"), fullPage: true });

  await page.getByRole("link", { name: "Try it in the playground" }).click();
  await page.getByLabel("Your question").fill("Who are you?");
  await page.getByText("Sampling").click();
  await page.getByLabel("Most tokens of the answer").fill("12");
  await page.getByRole("button", { name: "Ask" }).click();
  await expect.poll(() => page.getByText(/tokens? in /).count(), { timeout: minutes }).toBe(2);
  const [adapter, plain] = await page.locator(".answer").allTextContents();
  expect(adapter).not.toBe("");
  expect(adapter, `the adapter says something else than ${base}`).not.toBe(plain);
  await page.screenshot({ path: join(root, ".cache/console-playground.png"), fullPage: true });

  await page.getByRole("link", { name: "Adapters" }).click();
  await page.getByRole("link", { name: "from-a-page" }).click();
  await page.getByText("proven").waitFor();
  expect(faults).toEqual([]);
});
