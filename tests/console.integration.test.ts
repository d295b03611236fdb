/**
 * From a file to an answer in a browser, with every service a process of its own over a real NATS; only trainer and engine are simulated.
 * The gateway is killed in the middle of the run. Then a second version is tried by some, and taken back.
 */
import { createTenantKey } from "@loraline/local";
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

    // A second version waits for a decision, gets a share of the users, and is taken back.
    const client = line.services.client(gateway);
    const ofFirst = (await client.listRuns()).data[0]?.runId ?? "";
    await page.goto(`${gateway.url}/console/new?like=${ofFirst}`);
    await page.getByText("More settings").click();
    await page.getByLabel("When it is ready").selectOption({ label: "Wait for a decision" });
    await page.getByRole("button", { name: "Start the run" }).click();
    await page.getByText("answers", { exact: true }).waitFor({ timeout: 2 * minute });
    await page.getByRole("link", { name: "Start", exact: true }).click();
    await page.getByText("“from-a-page” version 2 is ready and waits to be promoted").waitFor();
    await page.goto(`${gateway.url}/console/adapters/from-a-page`);
    await page.getByRole("button", { name: "Promote 2" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel(/Step by step/).check();
    await dialog.getByRole("button", { name: "Promote" }).click();
    const card = page.getByRole("region", { name: "Version 2 answers 5 % of the users (canary)" });
    await card.waitFor();
    const users = Array.from({ length: 100 }, (_, n) => `user-${n}`);
    const versionFor = async (user: string): Promise<number> => {
      const messages = [{ role: "user" as const, content: "Who are you?" }];
      const { model } = await client.openai.chat.completions.create({ model: `${tenant}/from-a-page`, messages, user, max_tokens: 4 });
      return Number(model.split("@")[1]);
    };
    const versions: number[] = [];
    for (const user of users) versions.push(await versionFor(user));
    expect(new Set(versions)).toEqual(new Set([1, 2]));
    // Gateways tell of their requests from time to time, so what is counted is not told to the last one.
    const shown = async (version: number) =>
      Number(
        await card
          .getByRole("row", { name: `version ${version} ` })
          .getByRole("cell")
          .nth(1)
          .textContent(),
      );
    await expect.poll(() => shown(2), { timeout: minute }).toBeGreaterThan(0);
    // What a version had answered before a gateway first told of the canary does not count, so users go on asking.
    const stays = users[versions.indexOf(1)] ?? "";
    const ahead = async (): Promise<number> => {
      await versionFor(stays);
      return (await shown(1)) - (await shown(2));
    };
    await expect.poll(ahead, { timeout: minute }).toBeGreaterThan(0);
    await card.getByRole("button", { name: "Roll back" }).click();
    await dialog.getByText("The canary ends, and everybody gets the promoted version.").waitFor();
    await dialog.getByRole("button", { name: "Roll back" }).click();
    await expect.poll(() => card.count(), { timeout: minute }).toBe(0);
    await page.getByText("answers with version 1").waitFor();
    await page.getByRole("row", { name: /2 canary ended bootstrap/ }).waitFor();

    // Whoever belongs to another tenant learns nothing by the addresses of this one.
    const key = await createTenantKey({ natsUrl: line.nats.url, tenant: "neighbour", name: "theirs" });
    await using elsewhere = await browser.newContext({ locale: "en" });
    const theirs = await elsewhere.newPage();
    await theirs.goto(`${gateway.url}/console/runs/${ofFirst}`);
    await theirs.getByLabel("API key").fill(key);
    await theirs.getByRole("button", { name: "Sign in" }).click();
    await theirs.getByRole("heading", { name: "This is not here" }).waitFor();
    await theirs.getByRole("link", { name: "Go to the start page" }).click();
    await theirs.getByText("Train your first adapter").waitFor();
    expect(await theirs.locator("body").textContent()).not.toContain("from-a-page");
  },
);
