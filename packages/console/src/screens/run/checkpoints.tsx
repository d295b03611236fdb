import type { RunState } from "@loraline/contracts";
import type { ReactNode } from "react";
import { bytes, number, time } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card } from "../../ui/controls.tsx";

/** From where the training goes on when an attempt is lost; newest first. */
export function Checkpoints({ run: { checkpoints } }: { run: RunState }): ReactNode {
  const t = useTexts();
  return (
    <Card title={t.run.checkpoints} end={<span className="small soft">{t.run.checkpointsHint}</span>}>
      <div className="table-frame" style={{ maxHeight: 300, overflowY: "auto" }} tabIndex={0} role="group" aria-label={t.run.checkpoints}>
        <table>
          <thead>
            <tr>
              <th className="num">{t.run.step}</th>
              <th className="num">{t.run.loss}</th>
              <th className="num">{t.run.attempt}</th>
              <th className="num">{t.run.size}</th>
              <th>{t.common.when}</th>
            </tr>
          </thead>
          <tbody>
            {checkpoints.map(({ attempt, step, trainLoss, checkpoint, at }) => (
              <tr key={`${attempt}/${step}`}>
                <td className="num">{step}</td>
                <td className="num">{number(trainLoss)}</td>
                <td className="num">{attempt}</td>
                <td className="num">{bytes(checkpoint.size)}</td>
                <td className="when">{time(at, t.language)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Card>
  );
}
