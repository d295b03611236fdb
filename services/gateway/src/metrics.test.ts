import { expect, test } from "vitest";
import { engineRecord } from "./gateway-under-test.ts";
import { createMetrics } from "./metrics.ts";

test("an engine whose base is missing has a series that says so, for as long as it is", async () => {
  const metrics = createMetrics();
  const problem = { code: "BASE_MISSING", message: "not here" };
  const engines = [engineRecord({ engine: "well" }), engineRecord({ engine: "ill", problem })];
  metrics.engines(() => engines);
  const series = async () => (await metrics.text()).split("\n").filter((line) => line.startsWith("loraline_engine_problem"));
  expect(await series()).toEqual([`loraline_engine_problem{engine="ill",base="${engines[1]?.base.name}",code="BASE_MISSING"} 1`]);
  engines.pop();
  expect(await series()).toEqual([]);
});
