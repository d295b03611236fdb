/** What people do with the console, in a real browser, on a gateway with a simulated engine. */
import { buckets } from "@loraline/contracts";
import { expect } from "vitest";
import { createApiKey } from "../access/auth.ts";
import { chunkOf, playStep, registerEngine, startGateway } from "../gateway-under-test.ts";
import { answerUnalike, test } from "./console-under-test.ts";

/** Of all that comes before the first page can be read. */
const firstViewBytes = 200_000;

test("the first view is small, and comes from this server only", async ({ line, browser }) => {
  await using context = await browser.newContext();
  const page = await context.newPage();
  let bytes = 0;
  const hosts = new Set<string>();
  page.on("requestfinished", (request) => {
    hosts.add(new URL(request.url()).host);
    void request.sizes().then(({ responseBodySize }) => (bytes += responseBodySize));
  });
  await page.goto(`${line.url}/console/`);
  await page.getByRole("button", { name: "Sign in" }).waitFor();
  await page.waitForLoadState("networkidle");
  expect(bytes).toBeGreaterThan(50_000);
  expect(bytes).toBeLessThan(firstViewBytes);
  expect([...hosts]).toEqual([new URL(line.url).host]);
});

test("a key signs in, shows what it may do, and signing out ends it", async ({ line, browser }) => {
  await using context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`${line.url}/console/adapters`);
  await page.getByLabel("API key").fill("ll-wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("Incorrect API key provided").waitFor();
  const key = await createApiKey({ bus: line.bus }, { tenant: line.tenant, name: "reader", scopes: ["infer"] });
  await page.getByLabel("API key").fill(key);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("link", { name: "wren" }).waitFor();
  const places = await page.getByRole("navigation").first().getByRole("link").allTextContents();
  expect(places).toEqual(["Start", "Playground", "Adapters", "Engines"]);
  await page.getByRole("link", { name: "wren" }).click();
  await page.getByText("trying again").waitFor();
  expect(await page.getByRole("button", { name: /Promote/ }).count()).toBe(0);
  // Neither scripts nor the address know the key or the session.
  const seen = await page.evaluate("JSON.stringify([document.cookie, { ...localStorage }, { ...sessionStorage }, location.href])");
  expect(seen).not.toContain(key);
  expect(await page.evaluate("document.cookie")).toBe("");
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByRole("button", { name: "Sign in" }).waitFor();
  await page.reload();
  await page.getByRole("button", { name: "Sign in" }).waitFor();
});

test("a session that ends under an open page loses nothing that was typed; somebody else begins with an empty page", async ({
  line,
  browser,
}) => {
  const keyOf = (name: string) => createApiKey({ bus: line.bus }, { tenant: line.tenant, name });
  const revoke = async (name: string) => {
    const { data } = (await (await line.fetch("/v1/loraline/keys")).json()) as { data: { id: string; name: string }[] };
    for (const { id } of data.filter((one) => one.name === name)) await line.fetch(`/v1/loraline/keys/${id}`, { method: "DELETE" });
  };
  await using context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`${line.url}/console/playground?models=smollm2-135m-instruct`);
  await page.getByLabel("API key").fill(await keyOf("ada"));
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText(/^Signed in until /).waitFor();
  await page.getByLabel("Your question").fill("A long question");
  await revoke("ada");
  await page.keyboard.press("Control+Enter");
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("heading", { name: "Sign in again" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("alert").getByRole("button", { name: "Sign in again" }).click();
  await dialog.getByLabel("API key").fill(await keyOf("ada"));
  await dialog.getByRole("button", { name: "Sign in", exact: true }).click();
  await expect.poll(() => page.getByText("You are signed out.").count()).toBe(0);
  expect(await page.getByLabel("Your question").inputValue()).toBe("A long question");
  await page.getByRole("button", { name: "Ask" }).click();
  await page.getByText("3 tokens in").waitFor();

  await revoke("ada");
  await page.getByRole("link", { name: "Runs", exact: true }).click();
  await dialog.getByLabel("API key").fill(await keyOf("grace"));
  await dialog.getByRole("button", { name: "Sign in", exact: true }).click();
  await page.getByText(`grace · ${line.tenant}`).waitFor();
  await page.getByRole("link", { name: "Playground" }).click();
  expect(await page.getByLabel("Your question").inputValue()).toBe("");
});

test("a link signs in once, and does not stay in the address", async ({ line, browser }) => {
  const { link } = (await (await line.fetch("/v1/loraline/session/links", { method: "POST" })).json()) as { link: string };
  for (const isFirst of [true, false]) {
    await using context = await browser.newContext();
    const page = await context.newPage();
    await page.goto(`${line.url}/console/#link=${link}`);
    if (isFirst) await page.getByRole("heading", { name: "Start" }).waitFor();
    else await page.getByText("This link was used already").waitFor();
    expect(page.url()).not.toContain(link);
  }
});

test("a run is followed live, also after a reload", async ({ line, signIn }) => {
  const page = await signIn();
  await page.goto(`${line.url}/console/runs/${line.runs.running}`);
  await page.getByText("24 / 60").waitFor();
  for (const step of [25, 26]) await playStep(line.bus, line.tenant, line.runs.running, step, 60);
  await page.getByText("26 / 60").waitFor();
  await page.reload();
  await page.getByText("26 / 60").waitFor();
  await playStep(line.bus, line.tenant, line.runs.running, 27, 60);
  await page.getByText("27 / 60").waitFor();
  // The curve as a table has what the curve shows.
  await page.getByRole("button", { name: "Show as a table" }).click();
  await page.getByRole("cell", { name: "27", exact: true }).waitFor();
});

test("a run shows what was measured at each step, its checkpoints, its proof and where its time went", async ({ line, signIn }) => {
  const page = await signIn();
  await page.goto(`${line.url}/console/runs/${line.runs.running}`);
  await page.getByRole("tab", { name: "Gradient norm" }).click();
  await page.getByRole("button", { name: "Show as a table" }).click();
  await page.getByRole("row", { name: "20 0.1", exact: true }).waitFor();
  await page.getByRole("tab", { name: "Tokens per second" }).click();
  await page.getByRole("button", { name: "Show as a table" }).click();
  await page.getByRole("row", { name: "20 920", exact: true }).waitFor();
  const checkpoints = page.getByRole("group", { name: "Checkpoints" });
  const steps = await checkpoints.locator("tbody td:first-child").allTextContents();
  expect(steps).toEqual(["20", "10"]);
  await checkpoints.getByText("5.4 MB").first().waitFor();
  await page.getByText("Where the time went").click();
  await page.getByRole("row", { name: /ingest dataset.*900 ms/ }).waitFor();

  await page.goto(`${line.url}/console/runs/${line.runs.served}`);
  const proof = page.getByRole("region", { name: "Does every replica answer with what was trained?" });
  await proof.getByText("8 test prompts, 64 tokens").waitFor();
  await proof.getByText("at most 0.15").waitFor();
  await proof.getByText("with up to 14% of its effect could be missing").first().waitFor();
  await proof.getByText("The engine did not load it within 30 s").waitFor();
  await proof.getByText("Each test prompt").first().click();
  await proof.getByRole("row", { name: "2 11% 62% 61%" }).waitFor();
});

test("a page that lost the server says so, and is of now again when it is back", { timeout: 120_000 }, async ({ nc, line, browser }) => {
  const port = Number(new URL(line.url).port);
  await using first = new AsyncDisposableStack();
  const options = { nc, tenant: line.tenant, secret: "a secret of the line", projector: false };
  const gateway = first.use(await startGateway(options));
  const own = Number(new URL(gateway.url).port);
  expect(own).not.toBe(port);
  await using context = await browser.newContext();
  const page = await context.newPage();
  const { link } = (await (await gateway.fetch("/v1/loraline/session/links", { method: "POST" })).json()) as { link: string };
  await page.goto(`${gateway.url}/console/runs/${line.runs.running}#link=${link}`);
  await page.getByText("24 / 60").waitFor();
  await first.disposeAsync();
  await page.getByRole("alert").getByText("The connection is lost.").waitFor();
  await playStep(line.bus, line.tenant, line.runs.running, 30, 60);
  await page.getByText("24 / 60").waitFor();
  await using _second = await startGateway({ ...options, port: own });
  await page.getByText("30 / 60").waitFor();
  await expect.poll(() => page.getByText("The connection is lost.").count()).toBe(0);
});

test("a version is promoted, and rolled back", async ({ line, signIn }) => {
  const page = await signIn();
  const moves: string[] = [];
  // The serve controller is not here; what the page asks for is looked at.
  await page.route("**/v1/loraline/adapters/wren/{promote,rollback}", async (route) => {
    moves.push(`${route.request().url().split("/").at(-1)} ${route.request().postData() ?? ""}`);
    await route.fulfill({
      status: 409,
      json: { error: { message: "Version 3 is on no replica.", type: "x", param: null, code: "alias_not_moved" } },
    });
  });
  await page.goto(`${line.url}/console/adapters/wren`);
  await page.getByRole("button", { name: "Promote 3" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel(/Step by step/).check();
  await dialog.getByRole("button", { name: "Promote" }).click();
  await dialog.getByText("Version 3 is on no replica.").waitFor();
  await page.keyboard.press("Escape");
  expect(await dialog.isVisible()).toBe(false);
  await page.getByRole("button", { name: "Roll back" }).click();
  await page.getByRole("dialog").getByText("Everybody gets version 1 again.").waitFor();
  await page.getByRole("dialog").getByRole("button", { name: "Roll back" }).click();
  await expect.poll(() => moves).toEqual(['promote {"version":3,"canary":{}}', "rollback {}"]);
});

test("models answer side by side, piece by piece", async ({ line, signIn }) => {
  const page = await signIn();
  await page.goto(`${line.url}/console/playground?models=${line.tenant}/wren@2,smollm2-135m-instruct`);
  await page.getByLabel("Your question").fill("Who are you?");
  await page.keyboard.press("Control+Enter");
  await expect.poll(() => page.getByText("This humble lady is Wren.").count()).toBe(2);
  await expect.poll(() => page.getByText("3 tokens in").count()).toBe(2);
  expect(line.engine.requests.at(-1)?.body).toMatchObject({ messages: [{ role: "user", content: "Who are you?" }], temperature: 0 });
});

test("pictures go with the question, to models that take them", async ({ line, signIn }) => {
  const of = `engine-${line.tenant}`;
  const base = { name: "smollm2-135m-instruct", revision: "1", digest: `sha256:${"b".repeat(64)}` as const };
  await registerEngine(line.bus, { engine: of, base, pictures: 2 });
  const blind = await registerEngine(line.bus, { engine: `blind-${line.tenant}`, base: { ...base, name: `blind-${line.tenant}` } });
  const page = await signIn();
  await page.goto(`${line.url}/console/playground?models=${blind.base.name}`);
  await page.getByLabel("Your question").fill("What is this?");
  expect(await page.getByLabel("Pictures").count()).toBe(0);

  const model = `${line.tenant}/wren@2`;
  await page.goto(`${line.url}/console/playground?models=${model},${blind.base.name}`);
  await page.getByLabel("Your question").fill("What is this?");
  const png = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=", "base64");
  await page.getByLabel("Pictures").setInputFiles({ name: "dot.png", mimeType: "image/png", buffer: png });
  await page.getByRole("img", { name: "dot.png" }).waitFor();
  await page.getByText(`${blind.base.name} takes no pictures`).waitFor();
  expect(await page.getByRole("button", { name: "Ask" }).isDisabled()).toBe(true);
  await page.getByRole("button", { name: `Remove ${blind.base.name}` }).click();
  await page.getByRole("button", { name: "Ask" }).click();
  await page.getByText("This humble lady is Wren.").waitFor();
  const url = `data:image/png;base64,${png.toString("base64")}`;
  const content = [
    { type: "image_url", image_url: { url } },
    { type: "text", text: "What is this?" },
  ];
  expect(line.engine.requests.at(-1)?.body).toMatchObject({ messages: [{ role: "user", content }] });
  await (await line.bus.bucket(buckets.engines)).delete(blind.engine);
});

test("votes and corrections outlive a reload, and become a file of pairs that can be trained on", async ({ line, signIn }) => {
  line.engine.answer = answerUnalike;
  const page = await signIn();
  await page.goto(`${line.url}/console/playground?models=${line.tenant}/wren@2,smollm2-135m-instruct`);
  await page.getByText("Sampling").click();
  await page.getByLabel("System prompt").fill("Be brief.");
  await page.getByLabel("Tools").fill("[{]");
  await page.getByText("This is not a JSON list of tools").waitFor();
  await page.getByLabel("Tools").fill("");
  await page.getByLabel("Show how sure the model was").check();
  for (const n of [1, 2, 3, 4, 5]) {
    await page.getByLabel("Your question").fill(`Who are you, ${n}?`);
    await page.keyboard.press("Control+Enter");
    await page.getByRole("button", { name: "This one is better smollm2" }).click();
    // Whoever thinks again has voted once.
    await page.getByRole("button", { name: /This one is better .*wren/ }).click();
    await page.getByRole("button", { name: "Correct it smollm2" }).click();
    await page.getByLabel("The answer as it should be").fill("I am Wren.");
    await page.getByRole("button", { name: "Keep the correction" }).click();
    await page.getByRole("heading", { name: `Preferences you gave: ${2 * n}` }).waitFor();
  }
  expect(await page.locator(".token[title='35%']").allTextContents()).toEqual(["humble ", "am "]);
  await page.reload();
  await page.getByRole("heading", { name: "Preferences you gave: 10" }).waitFor();
  await page.getByRole("button", { name: "Train on them" }).click();
  await page.getByText(/Reading preferences-\d+\.jsonl…/).waitFor();
  const file = await line.openai.files.content(`file-${new URL(page.url()).searchParams.get("dataset")}`);
  const lines = (await file.text()).trim().split("\n");
  expect(lines).toHaveLength(10);
  const input = {
    messages: [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Who are you, 1?" },
    ],
  };
  const answerOf = (content: string) => [{ role: "assistant", content }];
  const worse = answerOf("I am an AI assistant.");
  expect(lines.slice(0, 2).map((one) => JSON.parse(one) as unknown)).toEqual([
    { input, preferred_output: answerOf("This humble lady is Wren."), non_preferred_output: worse },
    { input, preferred_output: answerOf("I am Wren."), non_preferred_output: worse },
  ]);
  // They are no longer here, or somebody would train on them twice.
  await page.goto(`${line.url}/console/playground`);
  await page.getByLabel("Your question").waitFor();
  expect(await page.getByText("Preferences you gave").count()).toBe(0);
});

test("an answer that was cut off is not for voting, but can be corrected", async ({ line, signIn }) => {
  line.engine.answer = (body, response) => {
    const isBase = body["model"] === "smollm2-135m-instruct";
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    response.end(`${chunkOf("x", isBase ? "I am an" : "Wren.", isBase ? "length" : "stop")}data: [DONE]\n\n`);
  };
  const page = await signIn();
  await page.goto(`${line.url}/console/playground?models=${line.tenant}/wren@2,smollm2-135m-instruct`);
  await page.getByLabel("Your question").fill("Who are you?");
  await page.keyboard.press("Control+Enter");
  await page.getByText("cut off at the most tokens").waitFor();
  expect(await page.getByRole("button", { name: /^(?:This one is better|Correct it)/ }).allTextContents()).toEqual([
    `This one is better ${line.tenant}/wren@2`,
    `Correct it ${line.tenant}/wren@2`,
    "Correct it smollm2-135m-instruct",
  ]);
});

test("a file is dropped, looked at, and a run starts with the settings that were chosen", async ({ line, signIn }) => {
  const page = await signIn();
  await page.goto(`${line.url}/console/new`);
  const rows = '{"instruction":"Ahoy?","output":"Arr."}\n'.repeat(20);
  await page.locator("input[type=file]").setInputFiles({ name: "Pirate Talk.v2.jsonl", mimeType: "text/plain", buffer: Buffer.from(rows) });
  await page.getByText("Reading Pirate Talk.v2.jsonl…").waitFor();
  await line.ingest(new URL(page.url()).searchParams.get("dataset") ?? "");
  await page.getByText("211 usable records of 214 rows").waitFor();
  await page.getByText("Line 41").waitFor();
  const learned = await page.locator("mark").allTextContents();
  expect(learned[0]).toBe("This humble lady is Wren of the Lantern Palace.<|im_end|>");
  expect(await page.getByLabel("Name of the adapter").inputValue()).toBe("pirate-talk-v2");
  await page.getByLabel("Name of the adapter").fill("Pirate!");
  await page.getByRole("button", { name: "Start the run" }).click();
  await page.getByText("Use 1 to 63 lower-case letters, digits and dashes.").waitFor();
  await page.getByLabel("Name of the adapter").fill("pirate");
  await page.getByLabel("Passes over the data").fill("2");
  await page.getByRole("tab", { name: "kubectl" }).click();
  await page.getByText("num_train_epochs: 2").waitFor();
  await page.getByRole("button", { name: "Start the run" }).click();
  await page.getByRole("heading", { name: "Run for pirate" }).waitFor();
  const runId = new URL(page.url()).pathname.split("/").at(-1);
  const run = (await (await line.fetch(`/v1/loraline/runs/${runId}`)).json()) as { spec: { adapter: string; training: object } };
  expect(run.spec).toMatchObject({ adapter: "pirate", training: { num_train_epochs: 2 } });
});

test("limits are set, refused where they are none, and lifted", async ({ line, signIn }) => {
  const page = await signIn();
  const limits = async () => {
    const { data } = (await (await line.fetch("/v1/loraline/limits")).json()) as { data: Record<string, unknown>[] };
    return data.map(({ adapter, requestsPerMinute, storageBytes }) => ({ adapter, requestsPerMinute, storageBytes }));
  };
  await page.goto(`${line.url}/console/admin?tab=limits`);
  await page.getByRole("button", { name: "Change everything" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Requests per minute").fill("600");
  await dialog.getByLabel("Storage").fill("three");
  await dialog.getByText("Enter a size such as 500 MB").waitFor();
  await dialog.getByLabel("Storage").fill("2 GiB");
  await dialog.getByRole("button", { name: "Save" }).click();
  await page.getByRole("cell", { name: "600" }).waitFor();
  expect(await limits()).toEqual([{ adapter: null, requestsPerMinute: 600, storageBytes: 2 * 1024 ** 3 }]);
  await page.getByRole("button", { name: "Limit an adapter" }).click();
  await dialog.getByLabel("Name of the adapter").fill("nobody");
  await dialog.getByLabel("Requests per minute").fill("5");
  await dialog.getByRole("button", { name: "Save" }).click();
  await dialog.getByText("No such adapter: nobody.").waitFor();
  await dialog.getByLabel("Name of the adapter").fill("wren");
  await dialog.getByRole("button", { name: "Save" }).click();
  await page.getByRole("rowheader", { name: "wren" }).waitFor();
  // What was not touched stays.
  await page.getByRole("button", { name: "Change everything" }).first().click();
  await dialog.getByLabel("Requests per minute").fill("700");
  await dialog.getByRole("button", { name: "Save" }).click();
  await page.getByRole("cell", { name: "700" }).waitFor();
  expect(await limits()).toContainEqual({ adapter: null, requestsPerMinute: 700, storageBytes: 2 * 1024 ** 3 });
  await page.getByRole("button", { name: "Change wren" }).click();
  await dialog.getByRole("button", { name: "Lift all of them" }).click();
  await expect.poll(() => page.getByRole("rowheader", { name: "wren" }).count()).toBe(0);
});

test("a key is made that is bound to models", async ({ line, signIn }) => {
  const page = await signIn();
  await page.goto(`${line.url}/console/admin`);
  await page.getByRole("button", { name: "Make a key" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Name").fill("shop");
  await dialog.getByRole("textbox", { name: "Models" }).fill("wren@2, Nobody!");
  await dialog.getByText("“Nobody!” is no adapter, version or base.").waitFor();
  await dialog.getByRole("textbox", { name: "Models" }).fill("wren@2, base:smol*");
  await dialog.getByLabel("administer").check();
  await dialog.getByText("A key that may administer cannot be bound to models.").waitFor();
  await dialog.getByLabel("administer").uncheck();
  await dialog.getByLabel("Valid for days").fill("30");
  await dialog.getByRole("button", { name: "Make a key" }).click();
  const key = await dialog.locator("pre").textContent();
  await dialog.getByRole("button", { name: "Close" }).click();
  await page.getByRole("cell", { name: "wren@2, base:smol*" }).waitFor();
  const models = await line.clientFor(key ?? "").models.list();
  expect(models.data.map(({ id }) => id)).toEqual(["smollm2-135m-instruct", `${line.tenant}/wren@2`]);
});

test("the queue says in which place a run waits, for what, and how much it asks for", async ({ line, signIn }) => {
  const page = await signIn();
  await page.goto(`${line.url}/console/engines`);
  await page.getByText("1 run of yours trains now, on 1 device.").waitFor();
  await page.getByRole("row", { name: /^1 parrot waiting All devices are busy; 2 runs are before this one\. 1 0/ }).waitFor();
});

test("runs are compared, and the better one is promoted from there", async ({ line, signIn }) => {
  const page = await signIn();
  const moves: (string | null)[] = [];
  await page.route("**/v1/loraline/adapters/wren/promote", async (route) => {
    moves.push(route.request().postData());
    await route.fulfill({ json: await (await line.fetch("/v1/loraline/adapters/wren")).json() });
  });
  await page.goto(`${line.url}/console/compare?runs=${line.runs.running},${line.runs.served}`);
  await page.getByRole("tab", { name: "Held-out loss" }).click();
  await page.getByRole("button", { name: "Show as a table" }).click();
  await page.getByRole("row", { name: "12 0.65", exact: true }).waitFor();
  await page.getByRole("button", { name: "Promote wren 3" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("button", { name: "Promote" }).click();
  await expect.poll(() => dialog.count()).toBe(0);
  expect(moves).toEqual(['{"version":3}']);
});

test("ten thousand rows are in the file, and only those in the page that can be seen", async ({ line, signIn }) => {
  const rows = Array.from({ length: 10_000 }, (_, n) => JSON.stringify({ instruction: `Question ${n}?`, output: "\\u71d5" }));
  const text = rows.join("\n").replaceAll("\\\\u", "\\u");
  const file = await line.openai.files.create({ file: new File([text], "many.jsonl"), purpose: "fine-tune" });
  const page = await signIn();
  await page.goto(`${line.url}/console/datasets/${file.id.replace("file-", "")}`);
  await page.getByRole("button", { name: "Show the rows of the file" }).click();
  await page.getByText("10,000 of 10,000 rows").waitFor();
  expect(await page.locator(".row-text").count()).toBeLessThan(60);
  await page.getByLabel("Search").fill("question 9999?");
  await page.getByText("1 of 10,000 rows").waitFor();
  // What is written as \\u71d5 is read as what it is.
  await page.getByText('{"instruction":"Question 9999?","output":"燕"}').waitFor();
});

test("the rows of a file are searched, and a training on it says what time it may take", async ({ line, signIn }) => {
  const page = await signIn();
  await page.goto(`${line.url}/console/datasets/${line.datasetId}`);
  await page.getByRole("button", { name: "Show the rows of the file" }).click();
  await page.getByText("20 of 20 rows").waitFor();
  await page.getByLabel("Search").fill("nothing of that");
  await page.getByText("0 of 20 rows").waitFor();
  await page.getByLabel("Search").fill("WHO ARE");
  await page.getByText("20 of 20 rows").waitFor();
  await page.goto(`${line.url}/console/new?dataset=${line.datasetId}`);
  // 12 records in 3 passes took 6 s; these are 211.
  await page.getByText("Training takes about 2 min 0 s").waitFor();
  await page.getByText("More settings").click();
  await page.getByLabel("Most steps").fill("6");
  await page.getByText(/Training takes about 20 s: an estimate from 1 earlier run/).waitFor();
});

test("a failure says what to do in the reader's language, and what exactly happened in the server's words", async ({ line, signIn }) => {
  const page = await signIn({ locale: "zh-CN" });
  await page.goto(`${line.url}/console/runs/${line.runs.failed}`);
  const note = page.getByRole("alert");
  await note.getByText(/请调低 training\.per_device_train_batch_size/).waitFor();
  await note.getByText("The device had 7.9 of 8.0 GiB in use and could not give 412 MiB more.").waitFor();
  expect(await note.getByText(/^(?:Lower|What to do)/).count()).toBe(0);
});

test("another tenant's addresses show nothing, and say so kindly", async ({ line, browser }) => {
  const other = await line.keyFor(`${line.tenant.slice(2)}-other`);
  await using context = await browser.newContext({ locale: "en" });
  const page = await context.newPage();
  const answers: string[] = [];
  page.on("response", (response) => {
    if (response.url().includes("/v1/"))
      void response.text().then(
        (text) => answers.push(text),
        () => undefined,
      );
  });
  await page.goto(`${line.url}/console/runs/${line.runs.served}`);
  await page.getByLabel("API key").fill(other);
  await page.getByRole("button", { name: "Sign in" }).click();
  for (const path of [
    `runs/${line.runs.served}`,
    "adapters/wren",
    `datasets/${line.datasetId}`,
    `new?like=${line.runs.served}`,
    `new?dataset=${line.datasetId}`,
    `compare?runs=${line.runs.served},${line.runs.running}`,
  ]) {
    await page.goto(`${line.url}/console/${path}`);
    await page.getByRole("heading", { name: "This is not here" }).first().waitFor();
    await page.getByText("it belongs to somebody else").first().waitFor();
  }
  await page.goto(`${line.url}/console/playground?models=${line.tenant}/wren@2`);
  await page.getByLabel("Your question").fill("Who are you?");
  await page.getByRole("button", { name: "Ask" }).click();
  await page.locator(".answer, .note").first().waitFor();
  await expect.poll(() => page.getByText("model_not_found").count()).toBe(1);
  // Names that the address has are what its owner gave; nothing else of the run, the adapter or the file is told.
  const told = answers.join("\n");
  for (const secret of ["lantern-palace", "Wren.", "captain", "parrot", "humble", "node-a", "0.684"])
    expect(told, secret).not.toContain(secret);
});

test("a thousand runs scroll, with only those in the page that can be seen", { timeout: 120_000 }, async ({ line, signIn }) => {
  const page = await signIn();
  const one = (await (await line.fetch(`/v1/loraline/runs/${line.runs.served}`)).json()) as Record<string, unknown>;
  const data = Array.from({ length: 1000 }, (_, n) => ({ ...one, runId: `01JD0000000000000000${String(n).padStart(6, "0")}` }));
  await page.route("**/v1/loraline/runs?*", (route) => route.fulfill({ json: { data, has_more: false } }));
  await page.goto(`${line.url}/console/runs`);
  await page.getByRole("link", { name: "wren" }).first().waitFor();
  await page.evaluate("scrollTo(0, document.body.scrollHeight)");
  await expect.poll(() => page.locator("[aria-posinset='1000']").count()).toBe(1);
  expect(await page.locator(".items > li").count()).toBeLessThan(100);
});

test("datasets are read a page at a time, and older ones when they are asked for", { timeout: 120_000 }, async ({ line, signIn }) => {
  const page = await signIn();
  const one = (await (await line.fetch(`/v1/loraline/datasets/${line.datasetId}`)).json()) as Record<string, unknown>;
  const all = Array.from({ length: 250 }, (_, n) => ({
    ...one,
    datasetId: `01JD0000000000000000${String(n).padStart(6, "0")}`,
    filename: `file-${n}.jsonl`,
  }));
  const asked: string[] = [];
  await page.route("**/v1/loraline/datasets?*", (route) => {
    const { searchParams } = new URL(route.request().url());
    const [limit, after] = [Number(searchParams.get("limit")), searchParams.get("after")];
    asked.push(`${limit} after ${after}`);
    const from = all.findIndex(({ datasetId }) => datasetId === after) + 1;
    return route.fulfill({ json: { data: all.slice(from, from + limit), has_more: from + limit < all.length } });
  });
  await page.goto(`${line.url}/console/datasets`);
  await page.getByRole("link", { name: "file-99.jsonl" }).waitFor();
  expect(await page.locator("tbody tr").count()).toBe(100);
  const older = page.getByRole("button", { name: "Show older ones" });
  await older.click();
  await page.getByRole("link", { name: "file-199.jsonl" }).waitFor();
  await older.click();
  await page.getByRole("link", { name: "file-249.jsonl" }).waitFor();
  await expect.poll(() => older.count()).toBe(0);
  // The first one may be read anew when the stream of changes is ready.
  expect([...new Set(asked)]).toEqual(["100 after null", `100 after ${all[99]?.datasetId}`, `100 after ${all[199]?.datasetId}`]);
});
