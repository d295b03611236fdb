import { createMetrics } from "@loraline/runtime";
import { expect, test } from "vitest";
import { engineRecord } from "./gateway-under-test.ts";
import { createGatewayMetrics } from "./metrics.ts";

test("an engine whose base is missing has a series that says so, for as long as it is; replicas are counted by state", async () => {
  const registry = createMetrics();
  const metrics = createGatewayMetrics(registry);
  const problem = { code: "BASE_MISSING", message: "not here" };
  const replicas = { ready: 0, unready: 2, silent: 1 };
  const engines = [engineRecord({ engine: "well" }), engineRecord({ engine: "ill", problem })].map((record) => ({ record, replicas }));
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
