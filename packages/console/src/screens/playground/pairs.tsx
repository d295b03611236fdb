/** The pairs that were chosen: kept in this tab until they are made a dataset, thrown away, or somebody signs out. */
import { useMutation } from "@tanstack/react-query";
import { Link, useNavigate } from "@tanstack/react-router";
import { type ReactNode, useState } from "react";
import { keptPairs } from "../../data/kept-pairs.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card } from "../../ui/controls.tsx";
import { ErrorNote } from "../../ui/states.tsx";
import { uploadFile } from "../new-run/upload.ts";
import { fewestPairs, linesOf, type Pair, withChoice } from "./decide-pairs.ts";

export function usePairs(): { pairs: readonly Pair[]; choose: (chosen: readonly Pair[]) => void; set: (pairs: readonly Pair[]) => void } {
  const [pairs, setPairs] = useState<readonly Pair[]>(() => keptPairs.read<Pair>());
  const set = (next: readonly Pair[]): void => {
    keptPairs.write(next);
    setPairs(next);
  };
  return { pairs, set, choose: (chosen) => set(withChoice(pairs, chosen)) };
}

export function Pairs({
  pairs,
  set,
  mayTrain,
}: {
  pairs: readonly Pair[];
  set: (pairs: readonly Pair[]) => void;
  mayTrain: boolean;
}): ReactNode {
  const t = useTexts();
  const navigate = useNavigate();
  const upload = useMutation({
    mutationFn: async ({ trains: _trains }: { trains: boolean }) => {
      const name = `preferences-${new Date().toISOString().slice(0, 16).replace(/\D/g, "")}.jsonl`;
      return uploadFile(new File([linesOf(pairs)], name, { type: "application/jsonl" }), () => undefined);
    },
    onSuccess: (dataset, { trains }) => {
      set([]);
      if (trains) void navigate({ to: "/new", search: { dataset } });
    },
  });
  if (pairs.length === 0 && upload.data === undefined && upload.error === null) return null;
  return (
    <Card title={t.playground.pairs(pairs.length)}>
      {pairs.length === 0 && upload.data !== undefined && (
        <p role="status">
          {t.playground.uploaded}{" "}
          <Link to="/datasets/$datasetId" params={{ datasetId: upload.data }}>
            {t.playground.toDataset}
          </Link>
        </p>
      )}
      {pairs.length > 0 && (
        <>
          <ul className="items" style={{ maxHeight: 320, overflowY: "auto" }} tabIndex={0} aria-label={t.playground.pairs(pairs.length)}>
            {pairs.map((pair) => (
              <li key={`${pair.choice}/${pair.worse}`}>
                <div className="grow stack-s">
                  <strong className="clip">{pair.prompt}</strong>
                  <span className="clip">
                    <span className="soft small">{t.playground.betterOne}</span> {pair.better}
                  </span>
                  <span className="clip">
                    <span className="soft small">{t.playground.worseOne}</span> {pair.worse}
                  </span>
                </div>
                <button
                  type="button"
                  className="button small"
                  aria-label={t.playground.removePair(pair.prompt)}
                  onClick={() => set(pairs.filter((one) => one !== pair))}
                >
                  ×
                </button>
              </li>
            ))}
          </ul>
          <p className="small soft">{pairs.length < fewestPairs ? t.playground.pairsTooFew(fewestPairs) : t.playground.pairsHint}</p>
          {mayTrain ? (
            <div className="row">
              <button
                type="button"
                className="button primary"
                disabled={upload.isPending || pairs.length < fewestPairs}
                onClick={() => upload.mutate({ trains: true })}
              >
                {t.playground.trainOnPairs}
              </button>
              <button type="button" className="button" disabled={upload.isPending} onClick={() => upload.mutate({ trains: false })}>
                {t.playground.uploadPairs}
              </button>
            </div>
          ) : (
            <p className="note">{t.common.noScope("train")}</p>
          )}
        </>
      )}
      {upload.error !== null && <ErrorNote error={upload.error} title={t.common.failedTitle} />}
    </Card>
  );
}
