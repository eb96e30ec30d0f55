def find_nvrtc(): return None
