/** The console in a real browser, on a gateway with a simulated engine: every screen, for eyes, for programs that read them aloud, and narrow. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import axe from "axe-core";
import type { Page } from "@loraline/testkit/browser";
import { expect } from "vitest";
import { answerUnalike, reportOfPairs, reportOfPictures, test } from "./console-under-test.ts";

const pictures = join(import.meta.dirname, "../../../../.cache/console-pictures");

/** What is done there before it is looked at: the same in every language. */
type Prepare = (page: Page) => Promise<void>;
type Screen = [path: string, there: string, prepare?: Prepare];

/** Addresses of all screens, and something that is there when one has come. */
const screensOf = (
  { tenant, datasetId, runs }: { tenant: string; datasetId: string; runs: Record<string, string> },
  { pairs, shapes }: Record<"pairs" | "shapes", string>,
) =>
  ({
    start: ["/", "Needs a decision"],
    runs: ["/runs", "captain"],
    run: [`/runs/${runs["running"]}`, "24 / 60"],
    "run-failed": [`/runs/${runs["failed"]}`, "What to do"],
    "run-served": [`/runs/${runs["served"]}`, "at most 0.15"],
    "run-measured": [
      `/runs/${runs["running"]}`,
      "Checkpoints",
      async (page) => {
        await page.getByRole("tab").nth(2).click();
        await page.locator(".uplot").waitFor();
        await page.locator("summary").first().click();
        await page.locator("td.place").first().waitFor();
      },
    ],
    "new-run": ["/new", "Drop a file here"],
    "new-run-settings": [`/new?dataset=${datasetId}`, "Name of the adapter"],
    "new-run-pairs": [`/new?dataset=${pairs}`, "a better and a worse answer"],
    "dataset-pictures": [
      `/datasets/${shapes}`,
      "60 pictures in 60 records",
      async (page) => {
        await expect.poll(() => page.evaluate("[...document.querySelectorAll('.thumbnail')].map((one) => one.naturalWidth)")).toEqual([24]);
      },
    ],
    adapters: ["/adapters", "wren"],
    adapter: ["/adapters/wren", "trying again"],
    playground: ["/playground", "Your question"],
    "playground-answered": [
      `/playground?models=${tenant}/wren@2,smollm2-135m-instruct`,
      "Your question",
      async (page) => {
        await page.locator("summary").first().click();
        await page.locator("input[type=checkbox]").check();
        await page.locator("textarea").first().fill("Who are you?");
        await page.keyboard.press("Control+Enter");
        await page.locator("[aria-pressed=false]").first().click();
        await page.locator("[aria-pressed=true]").waitFor();
      },
    ],
    datasets: ["/datasets", "lantern-palace.jsonl"],
    dataset: [
      `/datasets/${datasetId}`,
      "Runs that used it",
      async (page) => {
        await page
          .locator("section")
          .filter({ hasNot: page.locator("section") })
          .nth(2)
          .getByRole("button")
          .click();
        await page.locator(".row-text").first().waitFor();
      },
    ],
    compare: [`/compare?runs=${runs["running"]},${runs["served"]}`, "Results"],
    engines: ["/engines", "node-a"],
    "admin-keys": ["/admin", "Make a key"],
    "admin-limits": ["/admin?tab=limits", "Quotas"],
    "admin-limits-change": [
      "/admin?tab=limits",
      "Quotas",
      async (page) => {
        await page.locator("#main .button.small").first().click();
        await page.locator("dialog form").waitFor();
      },
    ],
    "admin-keys-make": [
      "/admin",
      "Make a key",
      async (page) => {
        await page.locator("#main .button.primary").first().click();
        await page.locator("dialog form").waitFor();
      },
    ],
    "admin-usage": ["/admin?tab=usage", "Usage"],
    "admin-audit": ["/admin?tab=audit", "Audit log"],
    "admin-failed": ["/admin?tab=failed", "Send again"],
  }) satisfies Record<string, Screen>;

/** @param only - the rules that can differ from what was found before; absent: all. */
async function findingsOf(page: Page, only?: string[]): Promise<string[]> {
  const found = await page.evaluate(
    `(() => { const module = undefined, exports = undefined; ${axe.source}; return axe.run(document, { runOnly: ${JSON.stringify(only ?? ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"])} }); })()`,
  );
  return (found as axe.AxeResults).violations.flatMap(({ id, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id}: ${target.join(" ")}: ${failureSummary}`),
  );
}

/** What a page said on its console and could not load: there must be none. */
function faultsOf(page: Page): string[] {
  const faults: string[] = [];
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (protocol.startsWith("http") && origin !== new URL(page.url()).origin) faults.push(`asked ${request.url()}`);
  });
  return faults;
}

test(
  "every screen, light, dark and 360 px wide: no findings of axe, no errors, nothing wider than the window",
  { timeout: 300_000 },
  async ({ line, signIn }) => {
    await mkdir(pictures, { recursive: true });
    line.engine.answer = answerUnalike;
    const pairs = await line.upload("answers.jsonl");
    await line.ingest(pairs.id, reportOfPairs);
    const shapes = await line.upload("shapes.zip");
    await line.ingest(shapes.id, await reportOfPictures(line.objects, line.tenant));
    const looks = {
      light: { colorScheme: "light" },
      dark: { colorScheme: "dark" },
      narrow: { colorScheme: "light", viewport: { width: 360, height: 740 } },
      chinese: { colorScheme: "light", locale: "zh-CN" },
    } as const;
    for (const [look, options] of Object.entries(looks)) {
      const page = await signIn(options);
      const faults = faultsOf(page);
      for (const [name, [path, there, prepare]] of Object.entries<Screen>(screensOf(line, { pairs: pairs.id, shapes: shapes.id }))) {
        await page.goto(`${line.url}/console${path}`);
        if (look !== "chinese") await page.getByText(there, { exact: false }).first().waitFor();
        await page.locator(".skeleton").first().waitFor({ state: "detached" });
        await prepare?.(page);
        await page.screenshot({ path: join(pictures, `${name}-${look}.png`), fullPage: true });
        if (look === "light") expect.soft(await findingsOf(page), `${name} ${look}`).toEqual([]);
        if (look === "dark") expect.soft(await findingsOf(page, ["color-contrast"]), `${name} ${look}`).toEqual([]);
        const tooWide = await page.evaluate("document.documentElement.scrollWidth - innerWidth");
        expect.soft(tooWide, `${name} ${look}: wider than the window`).toBeLessThanOrEqual(0);
      }
      expect.soft(faults, look).toEqual([]);
      await page.evaluate("document.querySelectorAll('.side').forEach((side) => side.setAttribute('data-open', 'true'))");
      await page.getByRole("button", { name: /Sign out|退出/ }).click();
      await page.locator("input[type=password]").waitFor();
      await page.screenshot({ path: join(pictures, `sign-in-${look}.png`), fullPage: true });
      if (look === "light") expect.soft(await findingsOf(page), "sign-in").toEqual([]);
    }
  },
);
