// The one clock of the page: the audio element's where there is sound, the computer's where there is none.

export class Clock {
  private rate = 1;
  private stopped = 0; // without audio: the time at which it last stopped
  private since: number | null = null; // and the moment since which it runs; null: it is stopped
  private reported = 0; // with audio: the element's last report, and when it came
  private reportedAt = 0;

  constructor(
    readonly duration: number,
    readonly audio: HTMLAudioElement | null,
  ) {}

  get playing(): boolean {
    return this.audio ? !this.audio.paused && !this.audio.ended : this.since !== null;
  }

  get speed(): number {
    return this.rate;
  }

  /** Seconds from the beginning. Some browsers report audio time in steps; between them it is carried on. */
  now(): number {
    const wall = performance.now() / 1000;
    if (!this.audio) {
      const time = this.since === null ? this.stopped : this.stopped + (wall - this.since) * this.rate;
      if (time >= this.duration && this.since !== null) this.seek(this.duration, true);
      return Math.min(time, this.duration);
    }
    const reported = this.audio.currentTime;
    if (reported !== this.reported || !this.playing || this.audio.seeking) {
      this.reported = reported;
      this.reportedAt = wall;
    }
    return Math.min(this.reported + Math.min(wall - this.reportedAt, 0.03) * this.rate, this.duration);
  }

  async play(): Promise<void> {
    if (this.now() >= this.duration - 0.01) this.seek(0);
    if (this.audio) await this.audio.play();
    else this.since ??= performance.now() / 1000;
  }

  pause(): void {
    if (this.audio) this.audio.pause();
    else this.seek(this.now(), true);
  }

  seek(time: number, stop = false): void {
    const target = Math.min(Math.max(time, 0), this.duration);
    if (this.audio) this.audio.currentTime = target;
    else {
      this.stopped = target;
      this.since = stop || this.since === null ? null : performance.now() / 1000;
    }
  }

  setSpeed(rate: number): void {
    if (this.audio) this.audio.playbackRate = rate;
    else {
      this.stopped = this.now();
      if (this.since !== null) this.since = performance.now() / 1000;
    }
    this.rate = rate;
  }
}
