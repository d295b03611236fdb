import { describe, expect, it } from "vitest";
import { quotasOf, quotaTable } from "./quotas.ts";

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
