/** Debian's Prometheus scrapes a whole line whose parts are killed: the alert that names each is fired by it, and none before. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { datasetReceived, subjectFor } from "@loraline/contracts";
import { freePort } from "@loraline/testkit/servers";
import { ulid } from "ulid";
import { expect, it } from "vitest";
import { base, eventually, scratchDir } from "../line-under-test.ts";
import { startPrometheus } from "../prometheus-under-test.ts";
import { startSimulatedLine, tenant } from "../services-under-test.ts";

it("an engine, a poisoned message, the controller and NATS go: each alert fires, and clients see the outage counted", async () => {
  await using scratch = await scratchDir();
  const monitorPort = await freePort();
  await using line = await startSimulatedLine({
    dir: scratch.path,
    natsArgs: ["-m", String(monitorPort)],
    env: { NATS_MONITORS: `http://127.0.0.1:${monitorPort}` },
  });
  const { services, engines, nc } = line;
  const client = services.client(line.gateways[0]!);
  const ask = () =>
    client.openai.chat.completions.create({ model: base, messages: [{ role: "user", content: "ahoy" }] }, { maxRetries: 0 });
  await eventually("the base answers", 120_000, () => ask());

  // What takes minutes in a cluster takes seconds here.
  const rules = (await readFile(join(import.meta.dirname, "../../helm/loraline/files/alerts.json"), "utf8"))
    .replaceAll(/"for": "[1-9]\w*"/g, '"for": "3s"')
    .replaceAll("offset 15m", "offset 10s");
  await using prometheus = await startPrometheus({
    dir: join(scratch.path, "prometheus"),
    port: await freePort(),
    targets: services.all.map(({ metricsPort }) => `127.0.0.1:${metricsPort}`),
    rules: `{"groups":${rules}}`,
  });
  const fires = (alert: string) =>
    eventually(`${alert} fires`, 120_000, async () => ((await prometheus.firing()).includes(alert) ? true : undefined));
  await eventually("everything is scraped", 120_000, async () =>
    (await prometheus.query('up{job="loraline"} == 1')).length === services.all.length ? true : undefined,
  );
  await new Promise((resolve) => setTimeout(resolve, 5000));
  expect(await prometheus.firing(), "all is well").toEqual([]);

  await engines[0]!.stop();
  await fires("LoralineEngineDown");
  for (let n = 0; n < 3; n++) await expect(ask()).rejects.toMatchObject({ status: 503, code: "model_not_ready" });
  const refused = 'sum(loraline_gateway_http_requests_total{code="503",error="model_not_ready",tenant="acme"})';
  await eventually("the refusals are counted", 120_000, async () => ((await prometheus.query(refused))[0]?.value ?? 0) >= 3 || undefined);
  await engines[0]!.start();
  await eventually(
    "the engine's alert ends",
    120_000,
    async () => !(await prometheus.firing()).includes("LoralineEngineDown") || undefined,
  );

  // It breaks its contract, so it fails for good.
  nc.publish(subjectFor(datasetReceived, { tenant, id: ulid() }), "{}");
  await fires("LoralineDeadLetters");

  await services.all.find(({ program }) => program === "train")!.kill();
  await fires("LoralineNoTrainer");
  await fires("LoralineTargetDown");

  await line.nats.kill();
  await fires("LoralineNatsDown");
  await fires("LoralineNotReady");
});
