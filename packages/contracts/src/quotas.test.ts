import { describe, expect, it } from "vitest";
import { judgeByQuotas, quotasOf, quotaTable } from "./quotas.ts";

describe("quotasOf", () => {
  const settings = { default: { datasets: 10, gpusAtOnce: null }, tenants: { big: { datasets: 100 } } };

  it("takes the tenant's own grant, then everybody's, then the quota's default", () => {
    expect(quotasOf("big", settings, undefined)).toMatchObject({ datasets: 100, gpusAtOnce: null, adapters: quotaTable.adapters.default });
    expect(quotasOf("small", settings, undefined)).toMatchObject({ datasets: 10, gpusAtOnce: null });
  });

  it("lets a tenant's admins take less, and the operator alone more", () => {
    expect(quotasOf("small", settings, { datasets: 4, gpusAtOnce: 2 })).toMatchObject({ datasets: 4, gpusAtOnce: 2 });
    expect(quotasOf("small", settings, { datasets: 40 })).toMatchObject({ datasets: 10 });
    expect(quotasOf("small", settings, { datasets: null })).toMatchObject({ datasets: 10 });
    expect(quotasOf("small", settings, { datasets: 40, adapters: null, fixed: true })).toMatchObject({
      datasets: 40,
      adapters: null,
      gpusAtOnce: null,
    });
  });
});

describe("judgeByQuotas", () => {
  const of = (quotas: object, spec: object) =>
    judgeByQuotas(spec, quotasOf("acme", { default: quotas }, undefined)).map(({ message }) => message);

  it("counts GPUs on all nodes, by the lower one of the two quotas", () => {
    expect(of({ gpusPerRun: 4 }, { gpus: 4 })).toEqual([]);
    expect(of({ gpusPerRun: 4 }, { nodes: 5 })).toEqual([
      expect.stringMatching(/^nodes: .* 5 GPUs \(1 on each of 5 nodes\).* gpusPerRun .* 4\./),
    ]);
    expect(of({ gpusPerRun: 8, gpusAtOnce: 2 }, { gpus: 4 })).toEqual([expect.stringMatching(/^gpus: .* gpusAtOnce .* 2\./)]);
    expect(of({ gpusPerRun: null, gpusAtOnce: null }, { gpus: 64, nodes: 64 })).toEqual([]);
  });

  it("takes any priority up to the highest one", () => {
    expect(of({}, { priority: -10 })).toEqual([]);
    expect(of({ highestPriority: -2 }, {})).toEqual([expect.stringMatching(/^priority: 0 is higher/)]);
    expect(of({ highestPriority: null }, { priority: 10 })).toEqual([]);
  });
});
