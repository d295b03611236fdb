/** `/v1/loraline/datasets`: what ingest found in each upload, beyond OpenAI's file object. */
import { Readable } from "node:stream";
import { datasetReport, type DatasetReport, type DatasetState } from "@loraline/contracts";
import { getJson } from "@loraline/objects";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { needs } from "./auth.ts";
import type { GatewayContext } from "./context.ts";
import { notFound } from "./errors.ts";
import { datasetIdOf } from "./openai-ids.ts";

export function datasetRoutes({ objects, state }: GatewayContext): (app: FastifyInstance) => void {
  const existing = async (request: FastifyRequest): Promise<DatasetState> => {
    const { id } = request.params as { id: string };
    const datasetId = datasetIdOf(id) ?? id;
    const dataset = await state.dataset(request.caller.tenant, datasetId);
    if (dataset === undefined || dataset.status === "deleted") throw notFound("dataset", id, "id");
    return dataset;
  };
  const reportOf = async (request: FastifyRequest): Promise<DatasetReport> => {
    const { datasetId, report } = await existing(request);
    if (report === null) throw notFound("report of dataset", datasetId, "id");
    return getJson(objects, request.caller.tenant, report, datasetReport);
  };

  return (app) => {
    app.get("/loraline/datasets", needs("train"), async (request) => ({
      data: (await state.datasets(request.caller.tenant)).filter(({ status }) => status !== "deleted"),
    }));
    app.get("/loraline/datasets/:id", needs("train"), existing);
    app.get("/loraline/datasets/:id/report", needs("train"), reportOf);
    // JSON Lines: there may be as many as the file has rows.
    app.get("/loraline/datasets/:id/rejections", needs("train"), async (request, reply) => {
      const { allRejections } = await reportOf(request);
      const lines = allRejections === null ? [] : await objects.get(request.caller.tenant, allRejections);
      return reply.header("content-type", "application/jsonl").send(Readable.from(lines, { objectMode: false }));
    });
  };
}
