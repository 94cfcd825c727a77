-- Gives a slot back. ARGV: channel, model, fence. Returns 1, or 0 when it isn't ours.
local channel, model, fence = unpack(ARGV)
local entry = slot(model)
if not entry or entry.fence ~= fence then return 0 end
drop(model)
changed(channel)
return 1
