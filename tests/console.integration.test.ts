/**
 * From a file to an answer in a browser, with every service a process of its own over a real NATS; only trainer and engine are simulated.
 * The gateway is killed in the middle of the run.
 */
import { startBrowser } from "@loraline/testkit/browser";
import { expect, it } from "vitest";
import { jsonLines, sampleRows, scratchDir } from "./line-under-test.ts";
import { bootstrapKey, startSimulatedLine, tenant } from "./services-under-test.ts";

const minute = 60_000;

it(
  "a file becomes an adapter that answers, watched by a page that outlives the gateway's death and a reload",
  { timeout: 5 * minute },
  async () => {
    await using scratch = await scratchDir();
    const script = { simulated: true, steps: 60, save_steps: 20, step_ms: 250 };
    await using line = await startSimulatedLine({ dir: scratch.path, script, env: { LORALINE_SECRET: "a secret of this test's line" } });
    const [gateway] = line.gateways;
    if (gateway === undefined) throw new Error("no gateway");
    await using browser = await startBrowser();
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, locale: "en" });
    await page.goto(`${gateway.url}/console/`);
    await page.getByLabel("API key").fill(bootstrapKey);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("link", { name: "Begin with a file" }).click();

    const rows = `${jsonLines(await sampleRows(24))}{"instruction": "Who\n`;
    await page.locator("input[type=file]").setInputFiles({ name: "from a page.jsonl", mimeType: "text/plain", buffer: Buffer.from(rows) });
    await page.getByText("24 usable records of 25 rows").waitFor({ timeout: minute });
    await page.getByText("1 row cannot be used").waitFor();
    await page.getByText("Line 25", { exact: true }).waitFor();
    expect(await page.locator("mark").count(), "what is learned is coloured").toBeGreaterThan(0);
    expect(await page.getByLabel("Name of the adapter").inputValue()).toBe("from-a-page");
    await page.getByRole("button", { name: "Start the run" }).click();
    await page.getByRole("heading", { name: "Run for from-a-page" }).waitFor();
    await page.getByText(/^[1-9]\d* \/ 60$/).waitFor({ timeout: minute });

    await gateway.kill();
    await page.getByRole("alert").getByText("The connection is lost.").waitFor();
    await gateway.spawn();
    await expect.poll(() => page.getByText("The connection is lost.").count(), { timeout: minute }).toBe(0);
    await page.reload();
    await page.getByText("answers", { exact: true }).waitFor({ timeout: 2 * minute });
    await page.getByRole("img", { name: /^Loss.*60 points/ }).waitFor({ timeout: minute });

    await page.getByRole("link", { name: "Try it in the playground" }).click();
    await page.getByText(`${tenant}/from-a-page@1`).first().waitFor();
    await page.getByLabel("Your question").fill("Who are you?");
    await page.getByRole("button", { name: "Ask" }).click();
    await expect.poll(() => page.getByText(/tokens? in /).count(), { timeout: minute }).toBe(2);
    const [adapter, plain] = await page.locator(".answer").allTextContents();
    expect(adapter).not.toBe("");
    expect(adapter).not.toBe(plain);
    await page.getByRole("link", { name: "Adapters" }).first().click();
    await page.getByRole("link", { name: "from-a-page" }).click();
    await page.getByText("proven", { exact: true }).waitFor();
  },
);
