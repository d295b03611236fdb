import { createMetrics } from "@loraline/runtime";
import { expect, test } from "vitest";
import { engineRecord } from "./gateway-under-test.ts";
import { createGatewayMetrics } from "./metrics.ts";

test("an engine whose base is missing has a series that says so, for as long as it is; replicas are counted by state", async () => {
  const registry = createMetrics();
  const metrics = createGatewayMetrics(registry);
  const problem = { code: "BASE_MISSING", message: "not here" };
  const replicas = { ready: 0, unready: 2, silent: 1 };
  const engines = [engineRecord({ engine: "well" }), engineRecord({ engine: "ill", problem })].map((record) => ({
    record,
    replicas,
    asleep: false,
  }));
  metrics.engines(() => engines);
  const series = async (name: string) => (await registry.text()).split("\n").filter((line) => line.startsWith(`${name}{`));
  const labels = `engine="ill",base="${engines[1]?.record.base.name}"`;
  expect(await series("loraline_engine_problem")).toEqual([`loraline_engine_problem{${labels},code="BASE_MISSING"} 1`]);
  expect(await series("loraline_engine_replicas")).toContain(`loraline_engine_replicas{${labels},state="unready"} 2`);
  engines.pop();
  expect(await series("loraline_engine_problem")).toEqual([]);
  expect(await series("loraline_engine_replicas")).toHaveLength(3);
});

test("an invented route of one tenant too many is counted under `other`", async () => {
  const registry = createMetrics();
  const metrics = createGatewayMetrics(registry);
  const answer = { route: "/v1/models", method: "GET", status: 200, error: "", model: "", seconds: 0.01, traceId: "ab".repeat(16) };
  for (let n = 0; n < 6000; n++) metrics.answered({ ...answer, tenant: `t${n}` });
  const lines = (await registry.text()).split("\n");
  expect(lines.filter((line) => line.startsWith("loraline_gateway_http_requests_total{")).length).toBe(5001);
  expect(lines.find((line) => line.includes('tenant="other"'))).toMatch(/ 1000$/);
  // The exemplar leads from the time to the trace.
  expect(
    lines.find((line) => /^loraline_gateway_http_seconds_bucket\{le="0.01".* # \{trace_id="(ab){16}"\} 0.01 /.test(line)),
  ).toBeDefined();
});

test("a tenant with thousands of models takes no other tenant's series", async () => {
  const registry = createMetrics();
  let time = 0;
  const metrics = createGatewayMetrics(registry, { cap: 20, now: () => time });
  const answer = {
    route: "/v1/chat/completions",
    method: "POST",
    status: 404,
    error: "model_not_found",
    seconds: 0.01,
    traceId: undefined,
  };
  const model = (tenant: string, n: number) =>
    metrics.model({ tenant, base: "b", adapter: `a${n}`, version: 1, engineModel: `${tenant}-${n}` });
  for (let n = 0; n < 6000; n++) metrics.answered({ ...answer, tenant: "loud", model: `loud/a${n}` });
  for (let n = 0; n < 30; n++) model("loud", n).unanswered();
  time = 60_000;
  metrics.answered({ ...answer, tenant: "quiet", model: "quiet/a" });
  model("quiet", 0).unanswered();
  const lines = (await registry.text()).split("\n");
  const answers = lines.filter((line) => line.startsWith("loraline_gateway_http_requests_total{"));
  expect(answers.filter((line) => line.includes('tenant="loud"')).length).toBe(1001);
  expect(answers.find((line) => line.includes('tenant="loud",model="other"'))).toMatch(/ 5000$/);
  expect(answers.find((line) => line.includes('tenant="quiet",model="quiet/a"'))).toMatch(/ 1$/);
  const models = lines.filter((line) => line.startsWith("loraline_gateway_requests_total{"));
  expect(models.some((line) => line.includes('tenant="quiet"'))).toBe(true);
  expect(new Set(models.map((line) => /adapter="([^"]+)"/.exec(line)?.[1]))).not.toContain("a30");
});
