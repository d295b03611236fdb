/** `DELETE /v1/models/{ft:… | <tenant>/<adapter>@<version>}`: OpenAI's route and answer, for one version of an adapter. */
import { adapterVersionDeleteRequested, type modelDeleted } from "@loraline/contracts";
import type { FastifyInstance } from "fastify";
import { ulid } from "ulid";
import type { z } from "zod";
import type { GatewayContext } from "../context.ts";
import { badRequest } from "../errors.ts";
import { enginesFor, parseModel, versionOfCheckpoint } from "../inference/decide-route.ts";
import { modelNotFound } from "../inference/models.ts";
import { createCommandFollower } from "./follow-command.ts";

export async function deleteVersionRoutes(context: GatewayContext): Promise<(app: FastifyInstance) => void> {
  const { bus, table } = context;
  const commands = await createCommandFollower(context);
  return (app) => {
    app.delete("/models/*", async (request): Promise<z.output<typeof modelDeleted>> => {
      const { "*": model } = request.params as { "*": string };
      const { tenant, by, actor } = request.caller;
      if (enginesFor(table.view(), tenant).some(({ base }) => base.name === model))
        throw badRequest(
          "model_is_base",
          `\`${model}\` is a base, which whoever runs the server provides. Only versions of adapters can be deleted.`,
          "model",
        );
      const named = parseModel(model);
      const state = named?.tenant === tenant ? await commands.adapter(tenant, named.adapter) : undefined;
      if (named === undefined || state === undefined || (named.base !== undefined && named.base !== state.base))
        throw modelNotFound(model, null);
      const { adapter } = named;
      const number = named.checkpoint === undefined ? named.version : versionOfCheckpoint(state, named.checkpoint)?.version;
      if (number === undefined && named.checkpoint !== undefined)
        throw modelNotFound(
          model,
          `\`${model}\` is no version: nobody has asked for this checkpoint yet, or it was deleted. It goes with its run.`,
        );
      if (number === undefined)
        throw badRequest(
          "version_missing",
          `Say which version is to be deleted, such as \`${tenant}/${adapter}@1\`. To delete the adapter with all its versions: \`loraline adapters delete ${adapter}\`, or DELETE /v1/loraline/adapters/${adapter}.`,
          "model",
        );
      const version = state.versions.find((known) => known.version === number);
      if (version === undefined) throw modelNotFound(model, `${tenant}/${adapter} has no version ${number}.`);
      const deleted = { id: model, object: "model", deleted: true } as const;
      // A repeated request, whose first answer was lost, succeeds too.
      if (version.status === "deleted") return deleted;
      const { seq } = await bus.publish(
        adapterVersionDeleteRequested,
        { tenant, id: adapter },
        { version: number, by },
        { key: ulid(), actor },
      );
      await commands.follow(
        { tenant, adapter },
        seq,
        ({ versions }) => versions.every((known) => known.version !== number || known.status === "deleted"),
        () => ({ code: "not_deleted", message: `Version ${number} of ${adapter} is not deleted yet` }),
      );
      return deleted;
    });
  };
}
